/* Dense, LoRA, DyLoRA and MultiLoRA, forward and backward, in C99: the conformance vectors in the text form of bridge.py.
   Build: cc -std=c99 consumer.c -lm. The letters and the sums are those of docs/conformance.md. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BRANCHES 8
typedef struct { int rank; double alpha; char rule[8]; double *A, *B, *dA, *dB; } Branch;

static char name[64], layout[32], function[16];
static int rows, in, out, steps, merge, count, from, up_to, owner[64];  /* owner: the branch of each row, or -1 */
static double rate, *x, *G, *W, *b, *y, *dx, *dW, *db;
static Branch branches[MAX_BRANCHES];

static void need(int read) { if (!read) { fprintf(stderr, "%s: the input ends early\n", name); exit(1); } }

static double *numbers(int n, int given) {
    double *array = calloc(n, sizeof *array);
    for (int i = 0; given && i < n; i++) need(scanf("%lf", &array[i]) == 1);
    return array;
}

static void print(const char *prefix, int branch, const char *what, const double *array, int n) {
    printf("%s %s %d %s", name, prefix, branch, what);
    for (int i = 0; i < n; i++) printf(" %.17g", array[i]);
    printf("\n");
}

static int w(int i, int j) { return strcmp(layout, "dense") ? j * in + i : i * out + j; }  /* where W[i][j] is stored */

static int width(const Branch *t) { return up_to ? up_to : t->rank; }  /* the rank of the pass */

static double scaling(const Branch *t) {
    double alpha = t->alpha < 0 ? t->rank : t->alpha;
    if (!strcmp(t->rule, "max")) return alpha / t->rank;
    return alpha / (strcmp(t->rule, "rslora") ? width(t) : sqrt(width(t)));
}

static double f(double z) { return !strcmp(function, "tanh") ? tanh(z) : strcmp(function, "relu") || z > 0 ? z : 0; }
static double slope(double z) {
    if (!strcmp(function, "tanh")) return 1 - tanh(z) * tanh(z);
    return strcmp(function, "relu") || z > 0 ? 1 : 0;
}

static void clear(double *array, int n) { for (int i = 0; i < n; i++) array[i] = 0; }
static void step(double *array, const double *gradient, int n) { for (int i = 0; i < n; i++) array[i] -= rate * gradient[i]; }

static void pass(void) {  /* row by row: y, and the accumulated gradients of sum(G * y) */
    clear(dx, rows * in), clear(dW, in * out), clear(db, out);
    for (int t = 0; t < count; t++) clear(branches[t].dA, in * branches[t].rank), clear(branches[t].dB, branches[t].rank * out);
    for (int n = 0; n < rows; n++) {
        for (int j = 0; j < out; j++) {
            double z = b[j], dz;
            for (int i = 0; i < in; i++) z += x[n * in + i] * W[w(i, j)];
            y[n * out + j] = f(z), dz = G[n * out + j] * slope(z), db[j] += dz;
            for (int i = 0; i < in; i++) dx[n * in + i] += dz * W[w(i, j)], dW[w(i, j)] += dz * x[n * in + i];
        }
        if (owner[n] < 0) continue;
        Branch *t = &branches[owner[n]];
        double s = scaling(t);
        for (int k = 0; k < width(t); k++) {
            double h = 0, dh = 0;
            for (int i = 0; i < in; i++) h += s * x[n * in + i] * t->A[i * t->rank + k];
            for (int j = 0; j < out; j++) y[n * out + j] += h * t->B[k * out + j], dh += s * G[n * out + j] * t->B[k * out + j];
            for (int i = 0; i < in; i++) dx[n * in + i] += dh * t->A[i * t->rank + k];
            if (k < from) continue;  /* DyLoRA's frozen mode */
            for (int i = 0; i < in; i++) t->dA[i * t->rank + k] += dh * x[n * in + i];
            for (int j = 0; j < out; j++) t->dB[k * out + j] += h * G[n * out + j];
        }
    }
}

static void print_merged(void) {
    double *merged = numbers(in * out, 0);
    const Branch *t = &branches[owner[0]];
    for (int i = 0; i < in; i++) for (int j = 0; j < out; j++) {
        merged[w(i, j)] = W[w(i, j)];
        for (int k = 0; k < width(t); k++) merged[w(i, j)] += scaling(t) * t->A[i * t->rank + k] * t->B[k * out + j];
    }
    print("merged", -1, "W", merged, in * out);
    free(merged);
}

static void read_case(void) {
    need(scanf("%s %s %d %d %d %lf %d %d %d", layout, function, &rows, &in, &out, &rate, &steps, &merge, &count) == 9);
    if (rows > 64 || count > MAX_BRANCHES) { fprintf(stderr, "%s: too large\n", name); exit(1); }
    x = numbers(rows * in, 1), G = numbers(rows * out, 1), W = numbers(in * out, 1), b = numbers(out, 1);
    y = numbers(rows * out, 0), dx = numbers(rows * in, 0), dW = numbers(in * out, 0), db = numbers(out, 0);
    for (int t = 0; t < count; t++) {
        Branch *r = &branches[t];
        need(scanf("%d %lf %7s", &r->rank, &r->alpha, r->rule) == 3);
        r->A = numbers(in * r->rank, 1), r->B = numbers(r->rank * out, 1);
        r->dA = numbers(in * r->rank, 0), r->dB = numbers(r->rank * out, 0);
    }
}

int main(void) {
    while (scanf("%63s", name) == 1) {
        int train_base;
        read_case();
        need(scanf("%d", &train_base) == 1);
        for (int turn = 0; turn < steps; turn++) {
            need(scanf("%d %d", &from, &up_to) == 2);
            for (int n = 0; n < rows; n++) need(scanf("%d", &owner[n]) == 1);
            pass();
            if (turn == 0) {
                print("y", -1, "y", y, rows * out), print("grad", -1, "x", dx, rows * in);
                print("grad", -1, "W", dW, in * out), print("grad", -1, "b", db, out);
                for (int t = 0; t < count; t++) {
                    print("grad", t, "A", branches[t].dA, in * branches[t].rank);
                    print("grad", t, "B", branches[t].dB, branches[t].rank * out);
                }
                if (merge) print_merged();
            }
            if (train_base) step(W, dW, in * out), step(b, db, out);
            for (int t = 0; t < count; t++) {
                step(branches[t].A, branches[t].dA, in * branches[t].rank);
                step(branches[t].B, branches[t].dB, branches[t].rank * out);
            }
        }
        print("after", -1, "W", W, in * out), print("after", -1, "b", b, out);
        for (int t = 0; t < count; t++) {
            print("after", t, "A", branches[t].A, in * branches[t].rank), print("after", t, "B", branches[t].B, branches[t].rank * out);
            free(branches[t].A), free(branches[t].B), free(branches[t].dA), free(branches[t].dB);
        }
        free(x), free(G), free(W), free(b), free(y), free(dx), free(dW), free(db);
    }
    return 0;
}

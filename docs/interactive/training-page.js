/* The training on the page: a few steps per frame, so that the page stays responsive; the loss; the bars after each epoch. */
"use strict";

const PLAN = { rank: MAX_RANK, epochs: 60, batch: 16, rate: 0.03 };
const PROBLEM = {
  inputs: TRAINING_DIGITS.map(({ pixels }) => VIEWS[DATA.dylora.view](pixels)), labels: TRAINING_DIGITS.map(({ label }) => label),
  hidden: DATA.hidden, output: DATA.output,
};
const MILLISECONDS = 10;  // of computation per frame

const training = { run: null, running: false, seed: 1, losses: { dylora: [], lora: [] }, sums: { dylora: 0, lora: 0 } };

function startTraining() {
  const { seed } = training;
  Object.assign(training, {
    run: Training.run(PROBLEM, { ...PLAN, seed }), running: true, losses: { dylora: [], lora: [] }, sums: { dylora: 0, lora: 0 },
  });
  $("exported").hidden = false;
  requestAnimationFrame(trainForAWhile);
}

function trainForAWhile() {
  const { run, sums, losses } = training, end = performance.now() + MILLISECONDS;
  if (!training.running) return;
  let epochs = 0;
  while (run.done < run.steps && performance.now() < end) {
    const step = run.advance();
    for (const name of ["dylora", "lora"]) sums[name] += step[name] / run.perEpoch;
    if (run.done % run.perEpoch === 0) {
      epochs += 1;
      for (const name of ["dylora", "lora"]) { losses[name].push(sums[name]); sums[name] = 0; }
    }
  }
  if (run.done === run.steps) training.running = false;
  if (epochs > 0) compare(run.dylora, run.lora);
  showTraining();
  if (training.running) requestAnimationFrame(trainForAWhile);
}

function showTraining() {
  const { run, running, losses } = training, finished = run !== null && run.done === run.steps;
  $("train").textContent = running ? "Pause" : run === null ? "Train" : finished ? "Train again" : "Go on";
  const status = $("training-status"), epoch = losses.lora.length;
  if (run === null) status.textContent = `Random numbers: seed ${training.seed}. ${PLAN.epochs} epochs of ${PROBLEM.inputs.length} digits, in seconds.`;
  else if (finished) {
    const at = (rank) => percent(compared.accuracies.dylora[rank]);
    status.textContent = `Done: ${run.steps} steps, seed ${training.seed}. DyLoRA: ${at(2)} at rank 2, ${at(4)} at rank 4, ${at(MAX_RANK)} at rank ${MAX_RANK}; `
      + `LoRA: ${percent(compared.accuracies.svd[2])}, ${percent(compared.accuracies.svd[4])} and ${percent(compared.accuracies.svd[MAX_RANK])}, truncated by the SVD.`;
  } else if (!running) status.textContent = `Paused after epoch ${epoch} of ${PLAN.epochs}, seed ${training.seed}.`;
  else if (epoch % 10 === 0) status.textContent = `Epoch ${epoch} of ${PLAN.epochs}, seed ${training.seed}.`;  // screen readers speak each change
  paintLoss();
}

function paintLoss() {
  const canvas = $("loss"), context = canvas.getContext("2d"), { losses } = training;
  const [left, top, right, bottom] = [70, 16, canvas.width - 16, canvas.height - 44];
  const [lowest, highest] = [0.01, 10];  // a logarithmic scale
  const x = (epoch) => left + ((right - left) * epoch) / PLAN.epochs;
  const y = (loss) => bottom - ((bottom - top) * Math.log(Math.min(highest, Math.max(lowest, loss)) / lowest)) / Math.log(highest / lowest);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.font = "22px system-ui, sans-serif";
  context.fillStyle = context.strokeStyle = colour("--soft");
  context.lineWidth = 1;
  context.textAlign = "right";
  for (const loss of [0.01, 0.1, 1, 10]) {
    context.fillText(loss, left - 10, y(loss) + 8);
    context.globalAlpha = 0.3;
    context.beginPath();
    context.moveTo(left, y(loss));
    context.lineTo(right, y(loss));
    context.stroke();
    context.globalAlpha = 1;
  }
  context.textAlign = "center";
  for (let epoch = 0; epoch <= PLAN.epochs; epoch += PLAN.epochs / 4) context.fillText(epoch, x(epoch), canvas.height - 10);
  context.lineWidth = 4;
  for (const [name, ink] of [["lora", "--lora"], ["dylora", "--accent"]]) {
    context.strokeStyle = colour(ink);
    context.beginPath();
    losses[name].forEach((loss, epoch) => context.lineTo(x(epoch + 1), y(loss)));
    context.stroke();
  }
}

function pressTrain() {
  const { run, running } = training;
  if (running) training.running = false;
  else if (run !== null && run.done < run.steps) {
    training.running = true;
    requestAnimationFrame(trainForAWhile);
  } else startTraining();
  showTraining();
}

function leaveTraining(seed) {
  Object.assign(training, { run: null, running: false, seed, losses: { dylora: [], lora: [] } });
  $("exported").hidden = true;
  compare(DATA.dylora, DATA.lora);
  showTraining();
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".training-count").forEach((node) => { node.textContent = PROBLEM.inputs.length; });
  $("train").addEventListener("click", pressTrain);
  $("new-seed").addEventListener("click", () => leaveTraining(training.seed + 1));
  $("exported").addEventListener("click", () => leaveTraining(training.seed));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintLoss);
  showTraining();
});

"""Bugs planted in lora_np/models."""

from planted.mutant import Mutant

CALLS = "tests/fuzz/test_fuzz.py"
RUN = "tests/test_run.py"
ADAPTING = "tests/test_adapting.py"
MODEL = "tests/test_model.py"
WHOLE = "tests/io/test_peft_whole.py"
ENCODERS = "tests/models/test_bert.py"
DECODERS = "tests/models/test_decoders.py"
GENERATION = "tests/models/test_generation.py"
NEXT = "tests/models/test_next_token.py"

MUTANTS = [
    Mutant(
        "a model that is no layer is not refused",
        "models/finding.py",
        '    instance("model", model, Layer, "a layer")\n',
        "",
        (CALLS,),
    ),
    Mutant(
        "a container's own arrays still train",
        "models/adapting.py",
        "frozenset(at_rest.union(twin.parameter_names))",
        "frozenset(at_rest)",
        (ADAPTING,),
    ),
    Mutant(
        "layers beside the adapters still train",
        "models/adapting.py",
        "frozenset(at_rest.union(twin.parameter_names))",
        "frozenset(twin.parameter_names)",
        (ADAPTING,),
    ),
    Mutant(
        "the layers to train are frozen",
        "models/adapting.py",
        "return apply_adapters(model, factories, train=kept)",
        "return apply_adapters(model, factories)",
        (ADAPTING,),
    ),
    Mutant(
        "a layer to train inside another one is frozen",
        "models/adapting.py",
        "return has_adapters(layer) or is_inside(path, train) or any(is_inside(kept, [path]) for kept in train)",
        "return has_adapters(layer) or is_inside(path, train)",
        (ADAPTING,),
    ),
    Mutant(
        "layers beside a layer to train stay trainable",
        "models/adapting.py",
        "if not changed and (is_inside(path, train) or not any(is_inside(kept, [path]) for kept in train)):",
        "if not changed:",
        (ADAPTING,),
    ),
    Mutant(
        "a model without adapters stays frozen",
        "models/adapting.py",
        '        train=("",),\n',
        "",
        (ADAPTING,),
    ),
    Mutant(
        "one adapter is merged although another cannot be",
        "models/adapting.py",
        "swaps.append((layer, layer.with_children(merged)))",
        "become(layer, layer.with_children(merged))",
        (RUN,),
    ),
    Mutant(
        "factories are called in another order than that of the layers",
        "models/adapting.py",
        "_adapted(path, layer, factories[path]) for path, layer in layers.items() if path in factories",
        "_adapted(path, layers[path], factories[path]) for path in sorted(factories, reverse=True)",
        (MODEL,),
    ),
    Mutant(
        "the seeds of the layers depend on the order of their names",
        "models/adapting.py",
        "for path in dense if path in chosen}",
        "for path in sorted(chosen)}",
        (ADAPTING,),
    ),
    Mutant(
        "an activation takes the name of another layer",
        "models/adapting.py",
        "if activation in model.children():",
        "if False:",
        (MODEL,),
    ),
    Mutant(
        "a rank is selected in part of a model",
        "models/finding.py",
        "    check_rank(adapters, rank)\n",
        "",
        (ADAPTING,),
    ),
    Mutant(
        "a task is selected in part of a model",
        "models/finding.py",
        "            adapter.get_task_adapter(task)\n",
        "            adapter.current_task = task\n",
        (MODEL,),
    ),
    Mutant(
        "a table at a rank counts every component",
        "models/parameter_table.py",
        "= (adapter.input_size, rank)",
        "= (adapter.input_size, adapter.max_rank)",
        (ADAPTING,),
    ),
    Mutant(
        "a table at a rank that is not active is accepted",
        "models/parameter_table.py",
        "        check_rank(adapters, rank)\n",
        "",
        (ADAPTING,),
    ),
    Mutant(
        "the gradient of an encoder block without its shortcut",
        "models/bert.py",
        "return dr + back(Q, dq)",
        "return back(Q, dq)",
        (ENCODERS,),
    ),
    Mutant(
        "the gradient of SwiGLU without the slope of its gate",
        "models/llama.py",
        "back(GATE, dh * u * slope)",
        "back(GATE, dh * u)",
        (DECODERS,),
    ),
    Mutant(
        "the gradient of a Llama block without its shortcut",
        "models/llama.py",
        "return da + back(NORM1, dn)",
        "return back(NORM1, dn)",
        (DECODERS,),
    ),
    Mutant(
        "the gradient of a GPT-2 block without its shortcut",
        "models/gpt2.py",
        "da = dy + back(NORM2, dm)",
        "da = back(NORM2, dm)",
        (DECODERS,),
    ),
    Mutant(
        "queries and keys of GPT-2 swapped",
        "models/gpt2.py",
        "q, k, v = np.split",
        "k, q, v = np.split",
        (DECODERS,),
    ),
    Mutant(
        "the gradient of a tied table from one of its uses",
        "models/causal.py",
        'gradients[name] = gradients[name] + own["weight"]',
        "pass",
        (DECODERS,),
    ),
    Mutant(
        "an encoder is accepted as the body of a decoder",
        "models/causal.py",
        "all(block.attention.causal for block in body.blocks.values())",
        "body.blocks",
        (DECODERS,),
    ),
    Mutant(
        "a generator reads the first token of a prompt",
        "models/generation.py",
        "h[spans.starts + spans.lengths - 1]",
        "h[spans.starts]",
        (GENERATION,),
    ),
    Mutant(
        "draws of a generator depend on which prompts are left",
        "models/generation.py",
        "self.random.random(count)[prompts]",
        "self.random.random(len(prompts))",
        (GENERATION,),
    ),
    Mutant(
        "top_k leaves out the smallest of the k",
        "models/generation.py",
        "z[z < smallest]",
        "z[z <= smallest]",
        (GENERATION,),
    ),
    Mutant(
        "a generator runs past the last position",
        "models/generation.py",
        "longest + new - 1 > model.positions",
        "longest + new - 2 > model.positions",
        (GENERATION,),
    ),
    Mutant(
        "tasks stay where they were when a sentence leaves the batch",
        "models/generation.py",
        "[names[i] for i in indices]",
        "[names[i] for i in range(len(indices))]",
        (GENERATION,),
    ),
    # ---------------------------------------------------------------- training on text
    Mutant(
        "next token: prompts are learned too",
        "models/next_token.py",
        "[-1] * (len(prompt) - 1) + answer",
        "prompt[1:] + answer",
        (NEXT,),
    ),
    Mutant(
        "next token: targets one token late",
        "models/next_token.py",
        "inputs = [(prompt + answer)[:-1]",
        "inputs = [(prompt + answer)[1:]",
        (NEXT,),
    ),
    Mutant(
        "next token: the mean over all rows",
        "models/next_token.py",
        "labels[piece], len(rows))",
        "labels[piece], len(labels))",
        (NEXT,),
    ),
    Mutant(
        "next token: ignored rows have a loss",
        "models/next_token.py",
        "np.flatnonzero(labels >= 0)",
        "np.flatnonzero(labels >= -1)",
        (NEXT,),
    ),
    Mutant(
        "next token: all logits at once",
        "models/next_token.py",
        "max(1, PIECE // self.head.output_size)",
        "len(labels)",
        (NEXT,),
    ),
    Mutant(
        "next token: the mean of means of pieces",
        "models/next_token.py",
        "total += loss\n        return total / max(len(rows), 1)",
        "total += loss / len(piece)\n        return total",
        (NEXT,),
    ),
    Mutant(
        "next token: the maximum stays in",
        "models/next_token.py",
        "        z -= z.real.max(axis=-1, keepdims=True)\n",
        "",
        (NEXT,),
    ),
    Mutant(
        "next token: a head that trains loses its gradient",
        "models/next_token.py",
        'if any(name.startswith(f"{model.head_name}.")',
        'if model is None and any(name.startswith(f"{model.head_name}.")',
        (NEXT,),
    ),
    Mutant(
        "whole tensors: an applied head does not train",
        "models/adapting.py",
        "train=(*_kept(model, train), *replace)",
        "train=_kept(model, train)",
        (WHOLE,),
    ),
]

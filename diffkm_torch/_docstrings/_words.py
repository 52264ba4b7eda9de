"""A docstring of `diffkm_jax` in the words of torch, by rules and exceptions."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from diffkm_torch._docstrings import HEAD

# By an autograd.Function without a rule for forward mode; the others have it.
ONLY_REVERSE = {
    "blackbox",
    "estimators.attach",
    "implicit_mle",
    "reinmax",
    "reinmax_cv",
    "reinmax_rao",
}

OPTIMIZER = "optimizers.GradientTransformation"
# A pattern and what takes its place, one after the other.
PROSE = [
    # Tensors are read as they come: nothing is traced, and nothing compiled.
    (r"[;,]( and| which)? may be traced", ""),
    (r"; static by identity, or a tree of arrays, as", ", as `squared_euclidean` or"),
    (r"; static by identity, or a tree of arrays", ""),
    (r"[,;] static by identity(, so defined once)?(, at module level)?", ""),
    (r" \(static by identity\)", ""),
    (r"[,;] static\b", ""),
    (r"\bStatic\. ", ""),
    # Tensors come without the checks of values that NumPy's arrays get.
    (r"([,;]) (`[^`]*` is below 1), or a NumPy array has a row [^,;.]*", r"\1 or \2"),
    (r"; or a NumPy array has a row outside the domain of `distance`", ""),
    (r"[,;] a NumPy array has a row outside the domain of `distance`", ""),
    (r"; `points` is a NumPy array with a row outside the domain of `distance`", ""),
    (r"; points are sharded", ""),
    (r"[,;] (or )?`axis_name` is not an axis of the shard_map around[^;.]*", ""),
    (r"fit, (`block_size` is below 1)\.", r"fit, or \1."),
    (r"\b[Nn]o optax transformation", f"no `{OPTIMIZER}`"),
    (r"\bAny optax transformation", f"Any `{OPTIMIZER}`, as `sgd(0.1)`"),
    (r"\b(An|A stateless) optax transformation", rf"\1 `{OPTIMIZER}`"),
    (r"\bAn array\b", "A tensor"),
    (r"\b[Aa]n array\b", "a tensor"),
    (r"\bArrays\b", "Tensors"),
    (r"\barrays\b", "tensors"),
    (r"\barray\b", "tensor"),
    (r"\bint32\b", "int64"),
    (r"\bdk\.", "dt."),
]
ASKED = [
    (r", ([^,]*), or forward mode is asked for( with `hard`)?", r", or \1"),
    (r", or forward mode is asked for", ""),
]
FORWARD = [
    (r"[,;] reverse mode only", ""),
    *ASKED,
]
GUMBEL = "torch.distributions.Gumbel(0.0, 1.0).sample("
CODE = [
    (r"\bjnp\.log\((\d\.\d)\)", r"torch.tensor(\1).log()"),
    (r"\bdk\.", "dt."),
    (r"\bjnp\.array\b", "torch.tensor"),
    (r"\bjnp\.", "torch."),
    (r"\bjax\.jacobian\b", "torch.func.jacrev"),
    (r"\bjax\.(grad|vjp|vmap)\b", r"torch.func.\1"),
    (r"\b(\w+), (\w+) = jax\.value_and_grad\b", r"\2, \1 = torch.func.grad_and_value"),
    (r"\bjax\.value_and_grad(.*)\]", r"torch.func.grad_and_value\1][::-1]"),
    (r"\bjax\.random\.gumbel\(jax\.random\.key\(0\), ", GUMBEL),
    (r"\bjax\.nn\.softmax\((\w+)\)", r"torch.softmax(\1, -1)"),
    (r"\bjax\.random\.key\(0\)", "torch.Generator().manual_seed(0)"),
]

Sections = dict[str, list[tuple[str, str]]]


def in_torch(name: str, sections: Sections) -> Sections:
    """The sections of a docstring of `diffkm_jax`, of an example its code."""
    left = dict(exceptions().get(name, {}))
    found = {}
    for head, entries in sections.items():
        rules = CODE if head == "Example" else PROSE
        if head != "Example" and name not in ONLY_REVERSE:
            rules = [*PROSE, *FORWARD]
        texts = [(key, _changed(text, left)) for key, text in entries]
        found[head] = [(key, _by(rules, text)) for key, text in texts]
    if left:
        raise ValueError(f"{name}: its docstring in diffkm_jax has no {list(left)}")
    if name in ONLY_REVERSE:
        raised = [(key, _by(ASKED, text)) for key, text in found["Raises"]]
        found["Raises"] = [
            *raised,
            ("NotImplementedError", "Forward mode is asked for."),
        ]
    return {
        head: [(key, text) for key, text in entries if text.strip()]
        for head, entries in found.items()
    }


@cache
def exceptions() -> dict[str, dict[str, str]]:
    """Of a name, words of `diffkm_jax` that no rule translates, and those instead."""
    file = Path(__file__).with_name("exceptions.txt")
    parts = HEAD.split(file.read_text(encoding="utf-8"))
    pairs = {
        name: re.findall(r"^- (.*)\n\+ ?(.*)$", text, flags=re.MULTILINE)
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {name: dict(found) for name, found in pairs.items()}


def _changed(text: str, left: dict[str, str]) -> str:
    """The text with the exceptions that it holds, which are left no longer."""
    for old in [old for old in left if old in text]:
        text = text.replace(old, left.pop(old))
    return text


def _by(rules: list[tuple[str, str]], text: str) -> str:
    for pattern, new in rules:
        text = re.sub(pattern, new, text)
    return text

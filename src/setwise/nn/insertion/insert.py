"""Put a relation into an existing model, and take it out again.

``insert`` finds the place (``places.py``) and hangs hooks there (``hooks.py``); no layer is replaced, so the model
keeps its class, its methods and the keys of its checkpoint.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from torch import nn

from setwise.errors import InvalidInput, choose
from setwise.nn.batchformer import BatchFormer, BatchFormerV2
from setwise.nn.insertion.checks import Output, Standing
from setwise.nn.insertion.doubling import NAME, Insertion, double_inputs, may_run_once
from setwise.nn.insertion.hooks import MASK, Entry, InOrder, ModelMask, Relate, parameters_of
from setwise.nn.insertion.measure import Place, Seen, forks, measure, observe, runs_by_itself
from setwise.nn.insertion.places import HEAD_NAMES, LAYERS, find_classifiers, find_layers, is_transformers
from setwise.nn.insertion.pooling import restore_pool

__all__ = ["insert", "remove"]

RECORD = "_setwise_insertion"
"""Attribute of a model that says what was done to it."""

RELATIONS: dict[str, type[BatchFormer] | type[BatchFormerV2]] = {
    "batchformer": BatchFormer,
    "batchformer-v2": BatchFormerV2,
}

ADD_REFERENCE_POINTS = ("conditional_detr", "dab_detr")
"""Detectors of transformers whose boxes are heads' outputs plus points that the decoder returns beside its states."""

Model = TypeVar("Model", bound=nn.Module)


def insert(
    model: Model,
    relation: Literal["batchformer", "batchformer-v2"] | nn.Module,
    *,
    at: str | int | Sequence[str | int] | None = None,
    shared: bool = True,
    dim: int | None = None,
    channels_first: bool | None = None,
    mask_padding: bool | None = None,
    example: Any = None,
    doubled: Sequence[str] = (),
    **options: Any,
) -> Model:
    """Let the samples of a batch learn from each other inside ``model``, in training; evaluation does not change.

    The model is changed in place and keeps its class, its methods and its keys; in training its output has 2B rows,
    the plain ones first: double the target with :func:`setwise.nn.streams.tile`. Models of transformers double their
    ``labels`` themselves and return the mean loss of both streams.

    Args:
        model: of timm, torchvision, transformers, or your own.
        relation: "batchformer" relates the features before the classifier; "batchformer-v2" relates every token or
            position behind layers; or a module, which maps ``[B, ...]`` to ``[2B, ...]`` in training.
        at: where: a 0-based index of the encoder's layers, the name of a submodule, or a list of them; the relation
            follows their output. None: before the classifier, which is found ("batchformer" only). Paper: DeiT 8,
            DETR 0.
        shared: one relation for all places; False: one each.
        dim: channels there; None: measured.
        channels_first: maps there are ``[B, C, H, W]``; None: measured.
        mask_padding: keep padding, as the layers' ``attention_mask`` tells it, out of the relation; None: for text
            yes, for images no, as in the paper.
        example: a batch the model can be run on, for models whose input cannot be guessed: a tensor, a tuple or a
            dictionary of named arguments.
        doubled: further names of arguments of a transformers model that hold one row for each sample.
        options: of the relation: ``num_heads``, ``dropout``, ``num_layers``, ``gather``, ...

    Returns:
        The model itself. The relation is its submodule ``setwise_relation``.

    Raises:
        InvalidInput: if there is a relation already, no place is found, or ``at`` names none.

    Source: Hou et al., BatchFormer, arXiv:2203.01522, section 3.2; BatchFormerV2, arXiv:2204.01254, section 3.

    >>> import torch
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> model = insert(model, "batchformer", at="2", example=torch.randn(2, 3, 2, 2))
    >>> model(torch.randn(32, 3, 2, 2)).shape
    torch.Size([64, 3])
    >>> remove(model)(torch.randn(32, 3, 2, 2)).shape
    torch.Size([32, 3])
    """
    _check_once(model)
    _check_relation(relation, options)
    before = at is None
    names = _before_classifier(model, relation) if at is None else _behind(model, relation, at)
    given = is_transformers(model)
    seen = observe(model, [*names, "", *find_classifiers(model)], example)
    places = [measure(model, name, None if seen is None else seen[name], before, dim, channels_first) for name in names]
    if seen is not None:
        places.sort(key=lambda place: seen[place.name].order)
    whole = given or (not before and seen is not None and not forks(model, places[0], seen))
    relations = _make(relation, places, shared, options, before)
    _settle(model, relations, None if seen is None else seen[""].example)
    insertion = Insertion()
    if mask_padding is None:
        mask_padding = given and getattr(model, "main_input_name", "") == "input_ids"
    _hang(model, insertion, places, relations, before, mask_padding, whole)
    if whole:
        also = frozenset(doubled) if given else frozenset(parameters_of(model))
        double_inputs(model, insertion, places, before, also)
    elif seen is not None:
        _check_output(model, insertion, seen[""])
    setattr(model, RECORD, insertion)
    return model


def remove(model: Model) -> Model:
    """Take relation and attention pooling out: what is left is the plain model, with the weights it has learned.

    Args:
        model: what :func:`insert` or :func:`attention_pooling` changed.

    Returns:
        The model itself, without a trace of setwise.

    Raises:
        InvalidInput: if there is nothing to remove.
    """
    insertion: Insertion | None = model.__dict__.get(RECORD)
    if restore_pool(model) and insertion is None:
        return model
    if insertion is None:
        raise InvalidInput(f"Nothing was inserted into this {type(model).__name__}, so there is nothing to remove.")
    ours = {id(hooked) for hooked in insertion.hooked}
    for module in model.modules():
        for hooks, kinds in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            (module._forward_hooks, module._forward_hooks_with_kwargs),
        ):
            for key in [key for key, hook in hooks.items() if id(getattr(hook, "__self__", None)) in ours]:
                del hooks[key]
                kinds.pop(key, None)
    for name, value in insertion.attributes.items():
        setattr(model, name, value)
    _unsettle(model)
    delattr(model, RECORD)
    return model


def _check_once(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"`model` must be a torch module, but it is of type {type(model).__name__}.")
    inside = [name or "the model" for name, module in model.named_modules() if RECORD in module.__dict__]
    if inside:
        raise InvalidInput(
            f"This {type(model).__name__} has a relation already (in {inside[0]}). Call remove(model) first, or give "
            "all places at once: at=[3, 8]."
        )


def _check_relation(relation: str | nn.Module, options: dict[str, Any]) -> None:
    if isinstance(relation, str):
        choose(relation, RELATIONS, "relation")
    elif options:
        raise InvalidInput(f"Options {sorted(options)} make a relation, but one was given: set them there.")


# --------------------------------------------------------------------------------------------------------- places
def _before_classifier(model: nn.Module, relation: str | nn.Module) -> list[str]:
    if relation == "batchformer-v2" or isinstance(relation, BatchFormerV2):
        raise InvalidInput(
            f'"batchformer-v2" goes behind layers: say which with `at`, by index or name. {_list_layers(model)}'
        )
    found = find_classifiers(model)
    if getattr(getattr(model, "config", None), "model_type", None) in ADD_REFERENCE_POINTS:
        raise InvalidInput(
            f"{type(model).__name__} adds points of its decoder to what its heads say, and these are not doubled "
            f'before the classifier. Relate in the encoder: insert(model, "batchformer-v2", at=[0]). '
            + _list_layers(model)
        )
    if not found:
        raise InvalidInput(
            f"No classifier was found in {type(model).__name__}: looked for get_classifier(), for a layer with as many "
            f"outputs as config.num_labels, and for {', '.join(HEAD_NAMES)} with a linear layer or convolution in it. "
            "Name the module whose output are the features [B, C] with `at`."
        )
    return found


def _behind(model: nn.Module, relation: str | nn.Module, at: str | int | Sequence[str | int]) -> list[str]:
    wanted = [at] if isinstance(at, str | int) else list(at)
    if not wanted:
        raise InvalidInput(f"`at` must name at least one place, but it is empty. {_list_layers(model)}")
    names = [_named(model, place) for place in wanted]
    if len(set(names)) < len(names):
        raise InvalidInput(f"`at` must name every place once, but {wanted} are {names}.")
    if isinstance(relation, BatchFormer) or relation == "batchformer":
        heads = find_classifiers(model)
        if scored := [name for name in names if name in heads]:
            raise InvalidInput(
                f"`at` names the classifier ({scored[0]}), and the relation follows what `at` names: it would relate "
                "scores. Leave `at` out, and it goes before the classifier."
            )
    order = [name for name, _ in model.named_modules()]
    return sorted(names, key=order.index)


def _named(model: nn.Module, place: str | int) -> str:
    if isinstance(place, bool) or not isinstance(place, int | str):
        raise InvalidInput(f"`at` takes indices and names of layers, but {place!r} is of type {type(place).__name__}.")
    if isinstance(place, str):
        known = [name for name, _ in model.named_modules() if name]
        if place not in known:
            choose(place, find_layers(model) or known[:20], "submodule")
        return place
    layers = find_layers(model)
    if not -len(layers) <= place < len(layers):
        raise InvalidInput(f"`at` ({place}) is not the index of a layer. {_list_layers(model)}")
    return layers[place]


def _list_layers(model: nn.Module) -> str:
    layers = find_layers(model)
    if not layers:
        return f"No list of layers was found in {type(model).__name__}: name a submodule. Looked for {LAYERS}."
    listed = [f"{index}: {name}" for index, name in enumerate(layers)]
    shown = listed if len(listed) <= 30 else [*listed[:14], "...", *listed[-14:]]
    return f"Layers of {type(model).__name__}: {', '.join(shown)}."


# ------------------------------------------------------------------------------------------------------ relations
def _make(
    relation: str | nn.Module, places: list[Place], shared: bool, options: dict[str, Any], before: bool
) -> list[nn.Module]:
    """A relation for every width of every place, in order: the same one where it is shared."""
    widths = [width for place in places for width in place.widths if width]
    if not isinstance(relation, str):
        if isinstance(own := getattr(relation, "dim", None), int) and set(widths) != {own}:
            raise InvalidInput(f"The relation was made for `dim` {own}, but {_widths(places)} passes.")
        if not shared and len(widths) > 1:
            raise InvalidInput("One module was given, so it is shared. For one each (shared=False), give its name.")
        return [relation] * len(widths)
    kind = RELATIONS[relation]
    if not before and shared and kind is BatchFormerV2 and len({tuple(filter(None, p.widths)) for p in places}) > 1:
        raise InvalidInput(
            f"One shared relation needs one width, but {_widths(places)} pass. Pass shared=False for one relation each."
        )
    if not shared:
        return [kind(width, **options) for width in widths]
    made = {width: kind(width, **options) for width in dict.fromkeys(widths)}
    return [made[width] for width in widths]


def _widths(places: list[Place]) -> str:
    return ", ".join(f"{' and '.join(str(w) for w in p.widths if w)} at {p.name}" for p in places)


def _settle(model: nn.Module, relations: list[nn.Module], example: tuple[tuple, dict] | None) -> None:
    """Make the relations a submodule, on the model's device, in its type and mode; refuse a model that would run it."""
    module = relations[0] if len({id(r) for r in relations}) == 1 else nn.ModuleList(dict.fromkeys(relations))
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None:
        module.to(device=weight.device, dtype=weight.dtype)
    model.add_module(NAME, module.train(model.training))
    if type(model).forward is nn.Sequential.forward:
        model.forward = InOrder(model, NAME).forward
    if example is not None and runs_by_itself(model, NAME, example):
        _unsettle(model)
        raise InvalidInput(
            f"{type(model).__name__} runs all of its children one after the other, so it would run the relation, too. "
            "Insert into a module that holds it: one whose forward calls it."
        )


def _unsettle(model: nn.Module) -> None:
    """Leave the model as it was before :func:`_settle`."""
    if isinstance(getattr(vars(model).get("forward"), "__self__", None), InOrder):
        del model.forward
    delattr(model, NAME)


# ---------------------------------------------------------------------------------------------------------- hooks
def _hang(
    model: nn.Module,
    insertion: Insertion,
    places: list[Place],
    relations: list[nn.Module],
    before: bool,
    mask_padding: bool,
    doubled: bool,
) -> None:
    standing = Standing(relations[0], {place.name: model.get_submodule(place.name) for place in places})
    insertion.hooked.append(standing)
    model.register_forward_pre_hook(standing.check)
    following = iter(relations)
    untold = [p.name for p in places if MASK not in parameters_of(model.get_submodule(p.name))]
    model_mask = _keep_mask(model, insertion) if mask_padding and untold and not before else None
    for index, place in enumerate(places):
        entries = tuple(
            None if width == 0 else Entry(next(following) if width else None, first)
            for width, first in zip(place.widths, place.channels_first, strict=True)
        )
        module = model.get_submodule(place.name)
        alone = before or index == 0  # each classifier's features fork by themselves
        once = is_transformers(model) and not before and index == 0 and may_run_once(module)
        site = Relate(
            relations[0],
            entries,
            first=alone,
            doubled=doubled and not once,
            mask_padding=mask_padding and not before,
            model_mask=model_mask if place.name in untold else None,
        )
        insertion.hooked.append(site)
        if before:
            module.register_forward_pre_hook(site.features, with_kwargs=True)
        else:
            module.register_forward_hook(site.output, with_kwargs=True)


def _keep_mask(model: nn.Module, insertion: Insertion) -> ModelMask:
    """Remember the mask that the model is given, for layers that are given none: embeddings, convolutions, mixers."""
    kept = ModelMask()
    insertion.hooked.append(kept)
    model.register_forward_pre_hook(kept.keep, with_kwargs=True)  # before the inputs are doubled
    return kept


def _check_output(model: nn.Module, insertion: Insertion, seen: Seen) -> None:
    two, three = ([shape for shape in shapes if shape] for shapes in seen.outputs)
    if not two or not three or two[0][0] * 3 != three[0][0] * 2:
        return  # the output has no batch axis that could be checked
    output = Output(model.get_submodule(NAME), two[0][0] // 2)
    insertion.hooked.append(output)
    model.register_forward_hook(output.check, with_kwargs=True)

"""A method refuses features of a form that it does not read, before training and in one line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ickd_pl import DistillationModule, Features, IncompatiblePair, get_model
from ickd_pl.data.batch import Batch
from ickd_pl.models.base import FeatureNet
from ickd_pl.strategies import discover
from ickd_pl.strategies.components.negatives import ClassTable

METHODS = discover()
# Written down here, not taken from the methods: what each reads as maps or vectors. A new method need not stand here.
OF_MAPS = {"ab", "at", "catkd", "fitnet", "fsp", "ft", "ickd", "kdsvd", "nst", "simkd", "vid"}
OF_VECTORS = {"cc", "crd"}
OF_ANY = {"ctkd", "dkd", "kd", "pkt", "rkd", "sp"}
FORMS = {"tokens": (17, 8), "vectors": (8,), "volumes": (8, 2, 4, 4)}


class OfForm(FeatureNet):
    """A network whose features, all but the logits, have one form."""

    classifier_path = "classifier"

    def __init__(self, form: tuple[int, ...], pooled: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.form, self.pooled = form, pooled
        self.layer = nn.Linear(3, int(torch.tensor(form).prod()))
        self.head = nn.Linear(3, int(torch.tensor(pooled).prod()))
        self.classifier = nn.Linear(self.head.out_features, 10)

    def features(self, image: Tensor, preact: bool = False) -> Features:
        mean = image.mean((2, 3))
        layer, pooled = self.layer(mean).unflatten(1, self.form), self.head(mean)
        stages = (layer, layer)
        logits, given, before = self.classifier(pooled), pooled.unflatten(1, self.pooled), stages if preact else None
        return Features(logits, layer, stages, layer, given, before, self.last_layer())

    def feat_modules(self) -> list[nn.Module]:
        return [self.layer]


def built(name: str, student: nn.Module, teacher: nn.Module) -> DistillationModule:
    return DistillationModule(student, teacher, strategies=[METHODS[name]()], num_classes=10, num_samples=40)  # type: ignore[call-arg]


def test_the_listed_methods_exist() -> None:
    assert set(METHODS) >= OF_MAPS | OF_VECTORS | OF_ANY


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(METHODS))
def test_other_forms_are_refused_or_work(name: str, form: str) -> None:
    student, teacher = OfForm(FORMS[form], (8,)), OfForm(FORMS[form], (8,), seed=1)
    if name in OF_MAPS:
        with pytest.raises(IncompatiblePair, match=r"it reads .* as a map \(C, H, W\), but OfForm gives") as refused:
            built(name, student, teacher)
        assert "\n" not in str(refused.value)
        return
    try:
        module = built(name, student, teacher)
    except IncompatiblePair:
        assert name not in OF_VECTORS | OF_ANY
        return
    for part in module.modules():
        if isinstance(part, ClassTable):
            part.fill(torch.arange(40) % 10)
    total, _, _ = module.losses(Batch(torch.randn(8, 3, 32, 32), torch.arange(8), torch.arange(8)))
    assert total.isfinite()


@pytest.mark.parametrize("name", sorted(OF_MAPS))
def test_a_map_on_one_side_only_is_refused(name: str) -> None:
    tokens = OfForm((17, 8), (8,))
    for student, teacher in ((get_model("resnet8", 10), tokens), (tokens, get_model("resnet8", 10))):
        with pytest.raises(IncompatiblePair, match="OfForm gives 17x8"):
            built(name, student, teacher)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_pooled_feature_that_is_no_vector(name: str) -> None:
    form, tokens, single = (8, 8, 8), (5, 8), (8, 1, 1)
    if name in OF_VECTORS:
        with pytest.raises(IncompatiblePair, match=r"as a vector \(D\), but OfForm gives 5x8"):
            built(name, OfForm(form, tokens), OfForm(form, tokens))
    built(name, OfForm(form, single), OfForm(form, single))


def test_a_hint_before_the_tokens_works() -> None:
    class Hybrid(OfForm):
        """Convolutional stem, then tokens."""

        def features(self, image: Tensor, preact: bool = False) -> Features:
            found = super().features(image, preact)
            return Features(found.logits, image[:, :, ::4, ::4], found.stages, found.final, found.pooled, None)

    strategy = METHODS["fitnet"](hint_layer=0)  # type: ignore[call-arg]
    nets = Hybrid((17, 8), (8,)), Hybrid((17, 8), (8,))
    module = DistillationModule(*nets, strategies=[strategy], num_classes=10)
    assert module.losses(Batch(torch.randn(4, 3, 32, 32), torch.arange(4), torch.arange(4)))[0].isfinite()
    with pytest.raises(IncompatiblePair, match="stage 2 as a map"):
        built("fitnet", *nets)

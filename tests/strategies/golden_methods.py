"""One table: how the golden set's methods, tensors and module keys are called here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.deployed import Head
from ickd_pl.models.features import Classifier, Features, FeatureShapes
from ickd_pl.strategies import (
    AB,
    AT,
    CATKD,
    CC,
    CRD,
    CTKD,
    DIST,
    DKD,
    FSP,
    FT,
    ICKD,
    ITRD,
    KD,
    KDSVD,
    NKD,
    NST,
    OFA,
    PKT,
    RKD,
    RLD,
    SDD,
    SP,
    SRRL,
    TTM,
    VID,
    WSLD,
    WTTM,
    FitNet,
    LossStrategy,
    ReviewKD,
    SimKD,
)
from ickd_pl.strategies.ctkd import ctkd_loss
from ickd_pl.strategies.reviewkd import reviewkd_loss
from tests.golden import golden_index

Named = dict[str, Tensor]


def make_features(**given: Any) -> Features:
    """Features of which a method reads only those given."""
    size = (
        len(given[next(iter(given))][0])
        if isinstance(next(iter(given.values())), tuple)
        else len(next(iter(given.values())))
    )
    blank = torch.zeros(size, 1, 1, 1)
    rest = {"logits": torch.zeros(size, 1), "stem": blank, "stages": (), "final": blank, "pooled": torch.zeros(size, 1)}
    return Features(**{**rest, **given})


@dataclass(frozen=True)
class Method:
    """A method of the golden set.

    Attributes:
        strategy: ours, from the entry's hyper-parameters.
        features: ours, from the entry's tensors in their order.
        keys: patterns of ``<module>/<key>`` and what they are in our adapter's state dict.
        first_stage: the entry is about the first stage's loss.
    """

    strategy: Callable[[dict[str, Any]], LossStrategy]
    features: Callable[[list[Tensor]], Features]
    keys: tuple[tuple[str, str], ...] = ()
    first_stage: bool = False

    def key(self, golden: str) -> str | None:
        """Our name for ``<module>/<key>``, or None where we have no such tensor."""
        for pattern, ours in self.keys:
            if re.match(pattern, golden):
                return re.sub(pattern, ours, golden, count=1)
        return None


def _stages(x: list[Tensor]) -> Features:
    return make_features(stages=tuple(x))


def _pooled(x: list[Tensor]) -> Features:
    return make_features(pooled=x[0])


def _logits(x: list[Tensor]) -> Features:
    return make_features(logits=x[0])


def _srrl(x: list[Tensor]) -> Features:
    """A vector, or a map, whose mean is the vector; logits, if they are given."""
    pooled = x[0] if x[0].dim() == 2 else x[0].mean((2, 3))
    given = {"final": x[0]} if x[0].dim() == 4 else {}
    return make_features(pooled=pooled, **given, **({"logits": x[1]} if len(x) > 1 else {}))


_OWN_HEAD = ((r"student_head/", "student_head/"),)


def _final(x: list[Tensor]) -> Features:
    return make_features(final=x[0])


def _sdd(h: dict[str, Any], base: Any) -> LossStrategy:
    beta = h.get("beta", h.get("gamma", 8.0))
    return SDD(base=base, temperature=h["T"], beta=beta, finest=h["M"][-1])


def _levels(x: list[Tensor]) -> Features:
    """Stages, and the pooled vector last."""
    return make_features(stages=tuple(x[:-1]), preact=tuple(x[:-1]), pooled=x[-1])


@dataclass(eq=False)
class ContextLoss(LossStrategy):
    """The loss of ReviewKD alone, of maps as they are."""

    weight: float = 1.0

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        maps = [[x if x.dim() == 4 else x[:, :, None, None] for x in net.stages] for net in (student, teacher)]
        value: Tensor = reviewkd_loss(*maps)
        return value


def _dkd(h: dict[str, Any], standardise: bool = False) -> LossStrategy:
    return DKD(alpha=h["alpha"], beta=h["beta"], temperature=h["T"], standardise=standardise)


def _rld(h: dict[str, Any]) -> LossStrategy:
    temperatures = {"temperature": h["T"], "confidence_temperature": h["alpha_T"]}
    return RLD(alpha=h["alpha"], beta=h["beta"], **temperatures, standardise=h["logit_stand"])


_THETA = ((r"temperature/global_T", "theta"),)


def learned_temperature(h: dict[str, Any], standardise: bool) -> LossStrategy:
    assert h["decay_max"] == 0
    ends = {"lowest": h["t_start"], "span": h["t_end"], "strength": -h["decay_min"]}
    return CTKD(**ends, curriculum_epochs=int(h["decay_loops"]), standardise=standardise)


class GivenTemperatures(LossStrategy):
    """CTKD's loss at one temperature for each image, which are the adapter's."""

    def __init__(self, eps: float = 0.0) -> None:
        self.weight, self.eps = 1.0, eps

    def build(self, student: FeatureShapes, teacher: FeatureShapes, data: DataInfo) -> nn.Module:
        return nn.ParameterDict({"T": torch.ones(golden_index()["batch"], 1)})

    def loss(self, student: Features, teacher: Features, batch: Batch, adapter: nn.Module | None) -> Tensor:
        value: Tensor = ctkd_loss(student.logits, teacher.logits, adapter["T"], self.eps)  # type: ignore[index]
        return value


METHODS: dict[str, Method] = {
    "kd": Method(lambda h: KD(temperature=h.get("T", 4.0)), _logits),
    "hint": Method(
        lambda h: FitNet(hint_layer=h.get("hint_layer", 2)),
        lambda x: make_features(stages=(x[0], x[0])),
        ((r"regressor/", ""),),
    ),
    "attention": Method(lambda h: AT(power=h.get("p", 2)), _stages),
    "similarity": Method(lambda h: SP(), _stages),
    "correlation": Method(
        lambda h: CC(dim=h["feat_dim"]), _pooled, ((r"embed_s/", "student."), (r"embed_t/", "teacher."))
    ),
    "vid": Method(
        lambda h: VID(init_variance=h.get("init_pred_var", 5.0)), _stages, ((r"vid(\d+)/", r"\1."), (r"vid/", ""))
    ),
    "rkd": Method(lambda h: RKD(distance_weight=h.get("w_d", 25), angle_weight=h.get("w_a", 50)), _pooled),
    "pkt": Method(lambda h: PKT(), _pooled),
    "fsp": Method(lambda h: FSP(), lambda x: make_features(stem=x[0], stages=tuple(x[1:])), first_stage=True),
    "nst": Method(lambda h: NST(), _stages),
    "ickd": Method(
        lambda h: ICKD(),
        lambda x: make_features(final=x[0]),
        ((r"embed(_s)?/conv2d\.", "conv."), (r"embed(_s)?/l2norm\.", "bn.")),
    ),
    "abound": Method(
        lambda h: AB(margin=h["margin"]),
        lambda x: make_features(preact=tuple(x)),
        ((r"connector/connectors\.", ""),),
        first_stage=True,
    ),
    "factor": Method(lambda h: FT(rate=h["k"]), _stages, ((r"(translator|paraphraser)/", r"\1."),)),
    "crd": Method(
        lambda h: CRD(
            dim=h["feat_dim"], negatives=h["nce_k"], temperature=h["nce_t"], momentum=h["nce_m"]
        ),
        _pooled,
        (
            (r"(crd/)?embed_s[./]", "embed_student."),
            (r"(crd/)?embed_t[./]", "embed_teacher."),
            (r"(crd/)?contrast[./]memory_v1", "student_memory"),
            (r"(crd/)?contrast[./]memory_v2", "teacher_memory"),
            (r"(crd/)?contrast[./]params", "constants"),
        ),
    ),
    "dkd": Method(_dkd, _logits),
    "kd_ls": Method(lambda h: KD(temperature=h["T"], standardise=True), _logits),
    "dkd_ls": Method(lambda h: _dkd(h, standardise=True), _logits),
    "nkd": Method(lambda h: NKD(gamma=h["gamma"], temperature=h["T"]), _logits),
    "wsld": Method(lambda h: WSLD(temperature=h["T"]), _logits),
    "ttm": Method(lambda h: TTM(exponent=h["l"]), _logits),
    "wttm": Method(lambda h: WTTM(exponent=h["l"]), _logits),
    "rld": Method(_rld, _logits),
    "dist": Method(lambda h: DIST(beta=h["beta"], gamma=h["gamma"], temperature=h["tau"]), _logits),
    "ofa": Method(lambda h: OFA(power=h["eps"], temperature=h["T"]), _logits),
    "srrl": Method(
        lambda h: SRRL(feature_weight=h.get("feature_weight", 1.0), logit_weight=h.get("logit_weight", 1.0)),
        _srrl,
        ((r"(transfer|srrl)/transfer\.0\.", "conv."), (r"(transfer|srrl)/transfer\.1\.", "bn.")),
    ),
    "srrl_map": Method(
        lambda h: SRRL(feature_weight=h["feature_weight"], logit_weight=h["logit_weight"], connect="map"),
        _srrl,
        ((r"connector/Connectors\.0\.", "conv."), (r"connector/Connectors\.1\.", "bn.")),
    ),
    "sdd_kd": Method(partial(_sdd, base="kd"), _final, _OWN_HEAD),
    "sdd_dkd": Method(partial(_sdd, base="dkd"), _final, _OWN_HEAD),
    "sdd_nkd": Method(partial(_sdd, base="nkd"), _final, _OWN_HEAD),
    "reviewkd": Method(lambda h: ContextLoss(), _stages),
    "reviewkd_full": Method(
        lambda h: ReviewKD(),
        _levels,
        (
            (r"abfs/(\d+)\.conv1\.", r"\1.reduce."),
            (r"abfs/(\d+)\.conv2\.", r"\1.expand."),
            (r"abfs/(\d+)\.att_conv\.0\.", r"\1.attention."),
        ),
    ),
    "itrd": Method(
        lambda h: ITRD(correlation_weight=h["lambda_corr"], mutual_weight=h["lambda_mutual"], exponent=h["alpha_it"]),
        _pooled,
        ((r"itrd/embed\.", ""),),
    ),
    "simkd": Method(
        lambda h: SimKD(factor=h["factor"]),
        lambda x: make_features(stages=(x[0],), final=x[0]),
        ((r"(projector|simkd)/transfer\.", "project."),),
    ),
    "ctkd": Method(lambda h: learned_temperature(h, False), lambda x: make_features(logits=x[0]), _THETA),
    "ctkd_ls": Method(lambda h: learned_temperature(h, True), lambda x: make_features(logits=x[0]), _THETA),
    "ctkd_instance": Method(
        lambda h: GivenTemperatures(h["eps"]), lambda x: make_features(logits=x[0]), ((r"temperature/T", "T"),)
    ),
    "catkd": Method(
        lambda h: CATKD(resolution=h["resolution"], normalise=h["normalise"]),
        lambda x: make_features(final=x[0]),
        ((r"student_head/", "student_head/"),),
    ),
    "kdsvd": Method(lambda h: KDSVD(count=h["k"]), _stages),
}  # fmt: skip


def method_of(name: str) -> Method:
    """The method's row; skips the running test where there is none."""
    if name not in METHODS:
        pytest.skip(f"method not built: {name}")
    return METHODS[name]


def built(
    strategy: LossStrategy, student: Features, teacher: Features, num_samples: int | None = None
) -> nn.Module | None:
    """The adapter for features of these shapes, after the method's own check."""
    shapes = FeatureShapes.of("student", student), FeatureShapes.of("teacher", teacher)
    strategy.check(*shapes)
    return strategy.build(*shapes, DataInfo(num_classes=100, num_samples=num_samples))


def seen_by(student: Features, adapter: nn.Module | None) -> Features:
    """What the method's loss reads of the student."""
    return adapter(student) if isinstance(adapter, Head) else student


def with_classifier(features: Features, classifier: Classifier | None) -> Features:
    """The same features with a last layer."""
    return replace(features, classifier=classifier)


def load(adapter: nn.Module, method: Method, values: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Copy the golden set's tensors, named ``<module>/<key>``, into our adapter.

    Returns:
        The names of ours that were set.
    """
    state, filled = adapter.state_dict(), set()
    for name, value in values:
        key = method.key(name)
        if key is None:
            continue
        # CRD's parameter vector holds its constants, two of which are ours.
        state[key].copy_(value[2:4] if key == "constants" else value)
        filled.add(key)
    return filled


def blank_batch(size: int) -> Batch:
    """A batch for methods that do not look at it."""
    zeros = torch.zeros(size, dtype=torch.long)
    return Batch(torch.zeros(size, 3, 1, 1), zeros, zeros)

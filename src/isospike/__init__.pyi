"""The public names, once: ``isospike/__init__.py`` reads where each of them lives from here."""

from isospike import (
    causal as causal,
    codes as codes,
    data as data,
    deploy as deploy,
    energy as energy,
    memory as memory,
    models as models,
    neurons as neurons,
    plot as plot,
    positions as positions,
    presets as presets,
    ranks as ranks,
    report as report,
    theory as theory,
)
from isospike.causal.estimator import ScoreSchurSort as ScoreSchurSort
from isospike.causal.report import order_causes as order_causes
from isospike.codes import code as code
from isospike.dimension import EffectiveDimension as EffectiveDimension
from isospike.errors import (
    InputError as InputError,
    IsospikeError as IsospikeError,
    MissingExtraError as MissingExtraError,
    RangeError as RangeError,
    ShapeError as ShapeError,
    UnsupportedError as UnsupportedError,
)
from isospike.experiments.study import reproduce as reproduce
from isospike.memory.machine import SequenceMachine as SequenceMachine
from isospike.memory.sdm import SparseDistributedMemory as SparseDistributedMemory
from isospike.neurons import IF as IF, LIF as LIF, PLIF as PLIF
from isospike.porting.audit import audit as audit
from isospike.porting.check import check as check
from isospike.porting.compare import compare as compare
from isospike.porting.dimensions import measure_dimension as measure_dimension
from isospike.porting.embed import embed as embed
from isospike.porting.files import load as load
from isospike.porting.plan import Target as Target
from isospike.porting.port import port as port
from isospike.positions import position as position
from isospike.pretrained.quantizer import IsospikeConfig as IsospikeConfig
from isospike.ranks.report import measure_ranks as measure_ranks

__version__: str

"""The public names, once: ``isospike/__init__.py`` reads where each of them lives from here."""

from isospike import (
    causal as causal,
    codes as codes,
    data as data,
    energy as energy,
    memory as memory,
    models as models,
    neurons as neurons,
    positions as positions,
    ranks as ranks,
    report as report,
    theory as theory,
)
from isospike.causal.estimator import ScoreSchurSort as ScoreSchurSort

# To go: names of namespaces.
from isospike.causal.report import OrderReport as OrderReport, order_causes as order_causes
from isospike.codes import (
    BernoulliCode as BernoulliCode,
    Code as Code,
    HalfOctaveCode as HalfOctaveCode,
    LatencyCode as LatencyCode,
    PhaseCode as PhaseCode,
    RankOrderCode as RankOrderCode,
    RateCode as RateCode,
    SignedDigitCode as SignedDigitCode,
    Similarity as Similarity,
    WeightedCode as WeightedCode,
    code as code,
    nof_m as nof_m,
    random_orders as random_orders,
    significance as significance,
    similarity as similarity,
)
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
from isospike.memory.machine import Prediction as Prediction, SequenceMachine as SequenceMachine
from isospike.memory.sdm import SparseDistributedMemory as SparseDistributedMemory
from isospike.models.gated_output import GatedOutputProjection as GatedOutputProjection
from isospike.models.transformer import Transformer as Transformer
from isospike.neurons import (
    IF as IF,
    LIF as LIF,
    PLIF as PLIF,
    NeuronParams as NeuronParams,
    NeuronState as NeuronState,
)
from isospike.porting.audit import audit as audit
from isospike.porting.compare import compare as compare
from isospike.porting.dimensions import measure_dimension as measure_dimension
from isospike.porting.embed import embed as embed
from isospike.porting.files import load as load
from isospike.porting.port import PortResult as PortResult, port as port
from isospike.porting.report import PortReport as PortReport
from isospike.positions import Position as Position, position as position
from isospike.products import spike_linear as spike_linear, spike_matmul as spike_matmul
from isospike.protocol import (
    FiveOperations as FiveOperations,
    MachineOperations as MachineOperations,
    TransformerOperations as TransformerOperations,
    run_online as run_online,
)
from isospike.ranks.heads import (
    HeadAmbiguity as HeadAmbiguity,
    head_ambiguity as head_ambiguity,
    recover_heads as recover_heads,
)
from isospike.ranks.norms import NormRank as NormRank, norm_rank as norm_rank
from isospike.ranks.numerical import (
    NumericalRank as NumericalRank,
    affine_rank as affine_rank,
    numerical_rank as numerical_rank,
)
from isospike.ranks.report import RankReport as RankReport, measure_ranks as measure_ranks

__version__: str

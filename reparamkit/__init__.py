"""reparamkit: the structural re-parameterization compiler for PyTorch."""

from .algebra.build import conv as conv
from .algebra.build import linear as linear
from .algebra.build import matrix as matrix
from .algebra.build import multiply as multiply
from .algebra.build import pool as pool
from .algebra.build import scale as scale
from .algebra.form import Form as Form
from .algebra.probe import probe as probe
from .carried import convert_state_dict as convert_state_dict
from .carried import recipe as recipe
from .carried import report as report
from .compare import Verification as Verification
from .errors import CaptureError as CaptureError
from .errors import CoverageError as CoverageError
from .errors import EquivalenceError as EquivalenceError
from .errors import GuardError as GuardError
from .errors import InvalidInputError as InvalidInputError
from .errors import NotFusable as NotFusable
from .errors import RecipeError as RecipeError
from .errors import ReparamkitError as ReparamkitError
from .errors import RuleError as RuleError
from .inject import inject_locality as inject_locality
from .pipeline import explain as explain
from .pipeline import fuse as fuse
from .pipeline import verify as verify
from .recipes.recipe import Recipe as Recipe
from .registry import reader as reader
from .registry import register_rule as register_rule
from .registry import rule as rule
from .registry import rules as rules
from .reporting import Report as Report
from .rulebook.pattern import Match as Match
from .rulebook.pattern import call as call
from .rulebook.pattern import value as value
from .rulebook.rule import Rule as Rule
from .timing import Benchmark as Benchmark
from .timing import benchmark as benchmark

__version__ = "0.1.0"

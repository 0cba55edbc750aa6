"""The table of layers we know: how to read them, how to write them. Importing it fills `READERS`."""

from . import borders as borders
from . import contract as contract
from . import conv as conv
from . import elementwise as elementwise
from . import linear as linear
from . import norm as norm
from . import normalize as normalize
from . import overwrite as overwrite
from . import padding as padding
from . import parts as parts
from . import pool as pool
from . import probed as probed
from . import resample as resample
from . import shift as shift
from . import spread as spread
from . import unfold as unfold
from . import views as views

"""What can be searched. Importing this package loads domains only; the space builder and the presets are modules beside it."""

from search_spaces.domains import SWITCH, Choice, Domain, Float, Int, Knob, KnobError, UserError, Variant, When, knob, knobs

__all__ = ["SWITCH", "Choice", "Domain", "Float", "Int", "Knob", "KnobError", "UserError", "Variant", "When", "knob", "knobs"]

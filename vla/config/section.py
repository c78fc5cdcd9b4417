"""What every section of the settings is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Even = Annotated[int, Field(ge=2, multiple_of=2)]
CountOrZero = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the settings: nothing can be added to it, left out of it or changed in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Schedule = Literal["cosine", "linear", "constant"]

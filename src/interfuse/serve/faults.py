"""What a service refuses, and in which words: every error that leaves it is one of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from interfuse.errors import InterfuseError
from interfuse.wire.body import shown

Code = Literal[
    "malformed",
    "unauthorised",
    "not_found",
    "wrong_method",
    "slow_body",
    "wrong_contract",
    "withdrawn",
    "too_large",
    "too_many_rows",
    "wrong_content_type",
    "wrong_parameter",
    "wrong_tensors",
    "wrong_dtype",
    "wrong_shape",
    "not_finite",
    "impossible",
    "too_many_requests",
    "internal",
    "busy",
    "unknown_standing",
]
"""What went wrong, for programs. The text beside it is for people, and may change."""
STATUS: Mapping[Code, int] = {
    "malformed": 400,
    "unauthorised": 401,
    "not_found": 404,
    "wrong_method": 405,
    "slow_body": 408,
    "wrong_contract": 409,
    "withdrawn": 410,
    "too_large": 413,
    "too_many_rows": 413,
    "wrong_content_type": 415,
    "wrong_parameter": 422,
    "wrong_tensors": 422,
    "wrong_dtype": 422,
    "wrong_shape": 422,
    "not_finite": 422,
    "impossible": 422,
    "too_many_requests": 429,
    "internal": 500,
    "busy": 503,
    "unknown_standing": 503,
}
assert STATUS.keys() == {*get_args(Code)}


class Fault(BaseModel):
    """The body of every answer that is an error.

    Attributes:
        message: What was expected and what was found.
        field: What of the request it is about, such as a tensor's name; empty where it is all of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: Code
    message: str
    field: str = ""


class ServiceError(InterfuseError):
    """A request that is not answered as it was meant.

    Attributes:
        retry: Seconds after which it may be worth another try, for the header ``Retry-After``; None: it is not.
        closes: Whether the connection cannot go on, since the rest of the request is not read.
    """

    def __init__(
        self, code: Code, message: str, field: str = "", *, retry: int | None = None, closes: bool = False
    ) -> None:
        super().__init__(message)
        self.fault = Fault(code=code, message=message, field=shown(field))
        self.retry, self.closes = retry, closes

    @property
    def status(self) -> int:
        """Of the answer."""
        return STATUS[self.fault.code]

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer, beside those that every one has."""
        found = {} if self.retry is None else {"Retry-After": str(self.retry)}
        if self.fault.code == "unauthorised":
            found["WWW-Authenticate"] = "Bearer"
        if self.closes:
            found["Connection"] = "close"
        return found

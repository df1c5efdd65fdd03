"""Every error that leaves this package, in one shallow tree.

Each error carries its facts as attributes, composes its own message, and ends with what to do. None ever
holds a request body, a header or a token: tokens travel in request bodies.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fetcher.report import Failure


class FetcherError(Exception):
    """The base of every error that this package raises on purpose."""


class ConfigError(FetcherError):
    """A mistake in the configuration or on the command line: `place` is where, `cause` what, `cure` what to do."""

    def __init__(self, place: str, cause: str, cure: str) -> None:
        super().__init__(f"{place}: {cause}. {cure}")
        self.place = place
        self.cause = cause
        self.cure = cure


class MissingExtraError(FetcherError):
    """A feature needs a package that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an extra. Install it with: pip install 'fetcher[{extra}]'")
        self.feature = feature
        self.extra = extra


class SinkError(FetcherError):
    """The sink cannot be used, or failed: `sink` is its URL without any password."""

    def __init__(self, sink: str, cause: str, cure: str) -> None:
        super().__init__(f"sink {sink}: {cause}. {cure}")
        self.sink = sink
        self.cause = cause
        self.cure = cure
        self.after_start = False
        """Whether the run had begun: then part of it may be durable."""


class SinkBusyError(SinkError):
    """Another process writes to this sink now."""


class TakenOverError(SinkError):
    """Another run, or another process of this one, has taken `portfolios` over: what this one commits counts no more.

    Nothing of the batch was kept; without what is of those portfolios it can be committed.
    """

    def __init__(self, sink: str, portfolios: Collection[str]) -> None:
        cause = "another run, or another process, has taken this over meanwhile, and goes on from what is durable"
        super().__init__(sink, cause, "Nothing is lost; run one at a time if it was not meant")
        self.portfolios = frozenset(portfolios)


class SinkAbandonedError(SinkError):
    """The run was told to end, and the sink could not in time: nothing of what it was doing was kept."""


class IncompleteError(FetcherError):
    """Part of the selection could not be loaded: `failed` names it, `table` is what could."""

    def __init__(self, failed: Sequence[Failure], table: Any) -> None:
        first = f"{failed[0].portfolio}: {failed[0].error}"
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        super().__init__(f"{first}{more}. What was loaded is in this error's attribute 'table'")
        self.failed = failed
        self.table = table


class DataError(FetcherError):
    """The platform sent an order that cannot be read, or that a sink cannot hold.

    Names the order, the property and the types, never the value (promise P10). `reason` says it without the order.
    """

    def __init__(self, order: str | None, property: str, expected: str, found: str) -> None:  # noqa: A002 the platform's own word
        self.reason = f"{property} should be {expected}, found {found}"
        super().__init__(
            f"order {order or '(without a readable Id)'}: {self.reason}. The platform changed or sent a damaged order"
        )
        self.order = order
        self.property = property
        self.expected = expected
        self.found = found


class PlatformError(FetcherError):
    """The platform answered a call with an error, or did not answer it.

    `operation` is the path's last two parts, `status` the HTTP status (`None`: no answer), `detail` the
    platform's own message (at most 500 characters), `request_id` its `Request-Id` header, if any.
    """

    cure = "Try again later"

    def __init__(
        self, operation: str, detail: str, *, status: int | None = None, request_id: str | None = None
    ) -> None:
        answer = f"answered {status}" if status is not None else "failed"
        reference = f" (request {request_id})" if request_id else ""
        super().__init__(f"{operation} {answer}: {detail}{reference}. {self.cure}")
        self.operation = operation
        self.status = status
        self.detail = detail
        self.request_id = request_id


class AccessDeniedError(PlatformError):
    """401 or 403: the token is invalid, expired, disabled or lacks the right."""

    cure = "Check the portfolio's access_token and the client_token, and what they may see"


class InvalidRequestError(PlatformError):
    """Another 4xx: the platform refuses this request, and would refuse it again."""

    cure = "Running it again will not help; report it with the request id if the configured ids are right"

    @property
    def names_services(self) -> bool:
        """Whether the platform objects to an id among the `ServiceIds`."""
        return self.status == 400 and "serviceids" in self.detail.replace(" ", "").lower()

    @property
    def names_enterprises(self) -> bool:
        """Whether the platform objects to an id among the `EnterpriseIds`."""
        return self.status == 400 and "enterpriseids" in self.detail.replace(" ", "").lower()

    @property
    def names_cursor(self) -> bool:
        """Whether the platform no longer knows the request's cursor."""
        return self.status == 400 and "cursor" in self.detail.lower()


class InvalidStatesError(InvalidRequestError):
    """400: the platform does not know one of the states that are asked for."""

    cure = 'Check orders.states: states are spelled as the platform does, e.g. "Confirmed"'


class TooHeavyError(PlatformError):
    """408, 413 or a time-out: this request asks for too much at once."""

    cure = "Lower limits.page_size or limits.window_months if it stays"


class UnavailableError(PlatformError):
    """Connection failures, 429 or 5xx that outlasted every retry."""

    cure = "Run again when the platform is well: what is durable is not loaded again"


class SetupError(PlatformError):
    """What is set up here keeps every request from leaving: a proxy, or a certificate that is not trusted."""

    def __init__(self, operation: str, detail: str, cure: str) -> None:
        self.cure = cure
        super().__init__(operation, detail)


class PausedError(UnavailableError):
    """The platform asked (Retry-After) to be left alone for longer than a run may wait: until `until`, in UTC."""

    cure = "Run again after that: what is durable is not loaded again"

    def __init__(self, operation: str, until: datetime, *, status: int | None = None) -> None:
        when = until.strftime("%Y-%m-%d %H:%M:%S")
        longer = "that is longer than limits.outage_minutes"
        super().__init__(operation, f"the platform asks for nothing more before {when} UTC; {longer}", status=status)
        self.until = until


class BadResponseError(PlatformError):
    """The answer cannot be used: truncated, undecodable, too large, not JSON, or against the contract."""

    cure = "Run again; report it with the request id if it stays"


def first_error(errors: BaseExceptionGroup[Exception]) -> Exception:
    """The first of the errors that ended a task group; the others are its echoes."""
    error = errors.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error

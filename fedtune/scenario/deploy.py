"""`[deploy]`: how a server of real clients waits for them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedtune.scenario.section import Section

Seconds = Annotated[float, Field(gt=0)]


class DeploySection(Section):
    """Of no use in a simulation, whose clients are always there."""

    min_clients: Annotated[int, Field(ge=1)] = Field(
        1, description="clients that must be connected for a round; with fewer the server waits"
    )
    join_timeout: Annotated[float, Field(ge=0)] = Field(
        60.0, description="seconds that round 1 waits for all clients; then with those that came"
    )
    round_timeout: Seconds = Field(
        3600.0, description="seconds until a client that has not answered is lost for the round"
    )

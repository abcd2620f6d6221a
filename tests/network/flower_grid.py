"""Flower's grid without Flower's servers: a message is handed to a ClientApp in a thread, its reply is there later."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

App = Callable[[Message, Context], Message]


def in_a_task() -> None:
    """Begin as Flower's processes do: without these numbers it makes no messages."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


class FakeGrid:
    """Nodes by their number, each with a ClientApp and its configuration, as Flower's SuperLink has them.

    Attributes:
        spoil: Given the number of an answer, counted from 1, says whether it is lost: Flower's error 5 comes for it.
    """

    def __init__(self, spoil: Callable[[int], bool] = lambda count: False) -> None:
        in_a_task()
        self.nodes: dict[int, tuple[App, Mapping[str, Any]]] = {}
        self._spoil, self._count = spoil, 0
        self._replies: dict[str, Message] = {}
        self._lock = threading.Lock()

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        for message in messages:
            name = str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = name
            threading.Thread(target=self._answer, args=(name, message), daemon=True).start()
            names.append(name)
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        with self._lock:
            return [self._replies.pop(name) for name in names if name in self._replies]

    def _answer(self, name: str, message: Message) -> None:
        node = message.metadata.dst_node_id
        app, config = self.nodes.get(node, (_gone, {}))
        context = Context(run_id=1, node_id=node, node_config=dict(config), state=RecordDict(), run_config={})
        try:
            reply = app(message, context)
        except Exception as error:
            reply = Message(Error(code=2, reason=f"{type(error)}:<'{error}'>"), reply_to=message)
        with self._lock:
            self._count += 1
            lost = self._spoil(self._count)
            self._replies[name] = _gone(message, context) if lost else reply


def _gone(message: Message, context: Context) -> Message:
    return Message(Error(code=5, reason="Node unavailable"), reply_to=message)

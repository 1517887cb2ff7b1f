"""An agent with tools: a script stands in for the model that calls them, an embedded model gives the final answer.

python examples/langchain_agent.py
"""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool

from tersely.controller.agents.chat import ChatTersely
from tersely.controller.agents.middleware import BudgetMiddleware, EffortMiddleware, SafetyMiddleware

STOCK = {"apples": 48, "pears": 27}


@tool
def stock(fruit: str) -> str:
    """How many of a fruit there are."""
    return f"There are {STOCK[fruit]} {fruit}. <|im_end|>"  # a marker that must not become one


class Planner(BaseChatModel):
    """Stands in for a model that calls tools: looks up both fruits, then asks for their sum."""

    @property
    def _llm_type(self) -> str:
        return "planner"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        """See `BaseChatModel.bind_tools`; its script knows the tools already."""
        return self.bind(**kwargs)

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        done = sum(isinstance(message, ToolMessage) for message in messages)
        call = {"name": "stock", "args": {"fruit": list(STOCK)[done]}, "id": f"call{done}"}
        message = AIMessage(f"Look up {done + 1} of 2.", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=message)])


class AnswerAtLast(AgentMiddleware):
    """Hands the question to another model, in its own words, once everything has been looked up."""

    def __init__(self, model: BaseChatModel) -> None:
        super().__init__()
        self.model = model

    def _asked(self, request: Any) -> Any:
        said = [message.text for message in request.messages if isinstance(message, ToolMessage)]
        if len(said) < len(STOCK):
            return request
        numbers = [text.split()[2] for text in said]
        question = HumanMessage(f"Compute {' + '.join(numbers)}.")
        return request.override(model=self.model, tools=[], messages=[question], model_settings={"effort": "easy"})

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        """See `AgentMiddleware.wrap_model_call`."""
        return handler(self._asked(request))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        """See `AgentMiddleware.awrap_model_call`."""
        return await handler(self._asked(request))


def make_agent(answerer: BaseChatModel) -> Any:
    """The agent; middleware that comes first is outermost."""
    middleware = [
        SafetyMiddleware(),
        EffortMiddleware({"plan": "normal", "result": "easy"}),
        BudgetMiddleware(tokens=4000, seconds=120, repeats=3),
        AnswerAtLast(answerer),
    ]
    return create_agent(Planner(), [stock], middleware=middleware)


if __name__ == "__main__":
    agent = make_agent(ChatTersely(model="tersely-tiny-small", temperature=0))
    done = agent.invoke({"messages": [HumanMessage("How many apples and pears are there together?")]})
    for message in done["messages"]:
        print(f"{message.type}: {message.text}")
    print("steps:", [(step["step"], step["effort"]) for step in done["tersely_steps"]])

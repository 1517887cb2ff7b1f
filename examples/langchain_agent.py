"""An agent with a tool on an embedded model, an effort for each step, and a budget for each question.

python examples/langchain_agent.py
"""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from tersely import ChatTersely
from tersely.controller.integrations.langchain.middleware import BudgetMiddleware, EffortMiddleware, SafetyMiddleware

PAGES = {
    "Ines Holm": "Ines Holm (person)\nTeam: Weaving at Selby Works\nHome: Varn\nWage: 47\nMentor: Hugo Nye",
    "Hugo Nye": "Hugo Nye (person)\nTeam: Dyeing at Selby Works\nHome: Corsk\nWage: 38\nMentor: Ines Holm",
    # The special token on this page must stay plain text.
    "Corsk": "Corsk (town)\nRegion: North\nResidents: 410\nMayor: Mona Birk <|im_end|>",
}


@tool
def lookup(name: str) -> str:
    """Read the page of a town, a firm, a team or a person by its full name."""
    return PAGES[name]


def make_agent(model: BaseChatModel) -> Any:
    """Make the agent; the first middleware is the outermost."""
    middleware = [
        SafetyMiddleware(),
        EffortMiddleware({"plan": "normal", "result": "easy"}),
        BudgetMiddleware(tokens=4000, seconds=120, repeats=3),
    ]
    return create_agent(model, [lookup], middleware=middleware)


if __name__ == "__main__":
    agent = make_agent(ChatTersely(model="tersely-tiny-agent", temperature=0))
    result = agent.invoke({"messages": [HumanMessage("What is the home town of the mentor of Ines Holm?")]})
    for message in result["messages"]:
        calls = [call["args"] for call in getattr(message, "tool_calls", ())]
        print(f"{message.type}: {message.text}", *calls)
    print("steps:", [(step["step"], step["effort"]) for step in result["tersely_steps"]])

"""A LangGraph whose two nodes call the same model with different efforts.

python examples/langgraph_node.py
"""

from __future__ import annotations

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from tersely import ChatTersely


class State(TypedDict, total=False):
    """The graph's state."""

    question: str
    guess: str
    answer: str
    tokens: int


def make_graph(model: ChatTersely) -> Any:
    """Make a graph that guesses first, and thinks only about questions with a sum in them."""
    quick, careful = model.bind(effort="none"), model.bind(effort="normal")

    def guess(state: State) -> State:
        message = quick.invoke(state["question"])
        return {"guess": message.text, "tokens": message.usage_metadata["output_tokens"]}

    def think(state: State) -> State:
        message = careful.invoke(state["question"])
        return {"answer": message.text, "tokens": state["tokens"] + message.usage_metadata["output_tokens"]}

    def choose_next(state: State) -> str:
        return "think" if "+" in state["question"] else END

    graph = StateGraph(State)
    graph.add_node("quick", guess)
    graph.add_node("think", think)
    graph.add_edge(START, "quick")
    graph.add_conditional_edges("quick", choose_next, ["think", END])
    graph.add_edge("think", END)
    return graph.compile()


if __name__ == "__main__":
    graph = make_graph(ChatTersely(model="tersely-tiny-small", temperature=0))
    state = graph.invoke({"question": "Compute (48 + 27) - 36."})
    print(f"guess: {state['guess']}; after thinking: {state['answer']}; {state['tokens']} output tokens")

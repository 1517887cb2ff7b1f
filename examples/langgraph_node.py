"""A LangGraph of one's own: two nodes ask the same model with different efforts; any Runnable is a node.

python examples/langgraph_node.py
"""

from __future__ import annotations

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from tersely.controller.integrations.langchain.chat_model import ChatTersely


class State(TypedDict, total=False):
    """What the nodes pass on."""

    question: str
    first: str
    answer: str
    tokens: int


def make_graph(model: ChatTersely) -> Any:
    """A quick answer first; then one with thinking, unless the quick one will do."""
    quick, careful = model.bind(effort="none"), model.bind(effort="normal")

    def guess(state: State) -> State:
        message = quick.invoke(state["question"])
        return {"first": message.text, "tokens": message.usage_metadata["output_tokens"]}

    def think(state: State) -> State:
        message = careful.invoke(state["question"])
        return {"answer": message.text, "tokens": state["tokens"] + message.usage_metadata["output_tokens"]}

    def settle(state: State) -> str:
        return "think" if "+" in state["question"] else END

    graph = StateGraph(State)
    graph.add_node("guess", guess)
    graph.add_node("think", think)
    graph.add_edge(START, "guess")
    graph.add_conditional_edges("guess", settle, ["think", END])
    graph.add_edge("think", END)
    return graph.compile()


if __name__ == "__main__":
    made = make_graph(ChatTersely(model="tersely-tiny-small", temperature=0)).invoke(
        {"question": "Compute (48 + 27) - 36."}
    )
    print(f"first: {made['first']}; after thinking: {made['answer']}; {made['tokens']} tokens written")

"""Questions to a reader, whose guesses are remembered until the answer."""

from collections.abc import Mapping, Sequence

from IPython import get_ipython
from IPython.display import Markdown, display
from ipywidgets import HTML, ToggleButtons


def interactive() -> bool:
    """Return whether somebody is at a front-end that can answer, as JupyterLab is and papermill is not."""
    return bool(get_ipython().kernel.get_parent()["content"].get("allow_stdin"))


class Guesses:
    """Questions with choices, asked where it is made; what a reader chose is remembered until `answer`."""

    def __init__(self, questions: Mapping[str, Sequence[str]]):
        look = {"value": None, "style": {"button_width": "max-content"}}
        self.asked = [ToggleButtons(options=[*choices], **look) for choices in questions.values()]
        for number, (question, button) in enumerate(zip(questions, self.asked, strict=True), start=1):
            plain = Markdown(f"**{number}.** {question} *{' · '.join(button.options)}*")
            display(*[HTML(f"<b>{number}.</b> {question}"), button] if interactive() else [plain])

    def answer(self, number: int, text: str) -> None:
        """Show what is right, beside what was guessed."""
        guess = self.asked[number - 1].value
        display(Markdown(f"**Guess {number}.** {f'You guessed: *{guess}*. ' if guess else ''}{text}"))

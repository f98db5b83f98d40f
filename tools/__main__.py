"""The book's workshop: check, run and compare the chapters, and build the site from what ran.

    python -m tools check             pages, contents, references and the ledger agree
    python -m tools book              run the chapters that are stale, build the site
    python -m tools run [CHAPTER]     execute the chapters whose stored run is stale
    python -m tools refs [CHAPTER]    execute, and write the committed references
    python -m tools nbval             execute all, and compare with the references
    python -m tools budget            what each chapter took, against what it may take
    python -m tools site              build _build/html from the stored runs, reading every page
    python -m tools format [CHAPTER]  lay out the code of the chapters

The executed form of a chapter lies in `_build/runs/linear/prompts.ipynb`, and counts only while its
key, a hash of all that its outputs depend on, is today's.
"""

import argparse
import sys

from tools.agreement import check
from tools.book import Book, BookError
from tools.engine import HOME, budget, compare_all, refresh, run_stale
from tools.layout import lay_out
from tools.site import build_site
from tools.store import alone

COMMANDS = ("check", "book", "run", "refs", "nbval", "budget", "site", "format")


def choose(book: Book, chapter: str | None) -> list[str]:
    """The chapters that a command is for: the named one, or all.

    Raises:
        BookError: If there is no such chapter.
    """
    chapters = book.chapters()
    if chapter and chapter not in chapters:
        raise BookError(f"no chapter {chapter}; there are {', '.join(chapters)}")
    return [chapter] if chapter else chapters


def report(problems: list[str]) -> None:
    """Say that nothing is wrong.

    Raises:
        BookError: If something is.
    """
    if problems:
        raise BookError("\n".join(problems))
    print("nothing is wrong", flush=True)


def build(book: Book, *, run: bool) -> None:
    """Build the site, after what is stale has run if so wanted; a whole build is done alone."""
    with alone(book):
        if run:
            run_stale(book, book.chapters())
        print(f"The book: {build_site(book, fresh=not run)}")


def carry_out(book: Book, command: str, chapter: str | None) -> None:
    """Carry out one command.

    Raises:
        BookError: If it fails.
    """
    match command:
        case "check":
            report(check(book))
        case "book":
            build(book, run=True)
        case "run":
            run_stale(book, choose(book, chapter))
        case "refs":
            refresh(book, choose(book, chapter))
        case "nbval":
            compare_all(book)
        case "budget":
            report(budget(book))
        case "site":
            build(book, run=False)
        case "format":
            lay_out(book, choose(book, chapter))


def main(arguments: list[str], book: Book) -> int:
    """Carry out one command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("chapter", nargs="?", help="an id such as linear/prompts; default: all")
    options = parser.parse_args(arguments)
    try:
        carry_out(book, options.command, options.chapter)
    except BookError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or book.build}: {error.strerror or error}"
    except KeyboardInterrupt:
        reason = "interrupted"
    else:
        return 0
    print(f"\n{options.command} failed\n{reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Book(HOME)))

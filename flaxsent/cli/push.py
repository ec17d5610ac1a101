"""`flaxsent push`: a folder to the Hub."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("push", description=_PUSH)
    command.add_argument("folder", metavar="FOLDER", help="a folder that train, export or flaxsent.save wrote")
    command.add_argument("id", metavar="ID", help="owner/name; the repository is made if it is not there")
    command.add_argument("--private", action="store_true", help="make it a private one")
    command.add_argument("--message", default="Upload by flaxsent", metavar="TEXT", help="of the commit")
    command.set_defaults(run=run)


_PUSH = """Uploads the files of a folder to the Hugging Face Hub in one commit, its README.md as the model card.
HF_TOKEN or `hf auth login` says who you are. Hidden files and folders are left out."""


def run(options: argparse.Namespace) -> None:
    from flaxsent.checkpoint.push import push

    print(push(options.folder, options.id, private=options.private, message=options.message))

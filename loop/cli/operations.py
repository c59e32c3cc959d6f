"""Commands of an operator: check, back up, repair, go back a schema, forget a person."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from loop.cli.build import at_work, build_reviewer, open_store, server_probes
from loop.cli.options import CAMPAIGN, AsJson, File
from loop.cli.terminal import echo, echo_json, say
from loop.errors import LoopError

app = typer.Typer()


@app.command(epilog="Example: goldloop doctor --file films/goldloop.toml")
def doctor(file: File = CAMPAIGN, as_json: AsJson = False) -> None:
    """Check the machine, the servers and the store: what is wrong, and what to do."""
    from loop.operate.doctor import as_json as told
    from loop.operate.doctor import examine

    lines = []
    for line in examine(file, server_probes):
        lines.append(line)
        if not as_json:
            echo(line)
    if as_json:
        echo_json(told(lines))
    problems = sum(line.level == "problem" for line in lines)
    if problems:
        say(f"{problems} problem{'s' if problems > 1 else ''}: see what to do above.")
        raise typer.Exit(1)
    say("No problem found.")


@app.command(epilog="Example: goldloop upgrade --file films/goldloop.toml")
def upgrade(file: File = CAMPAIGN) -> None:
    """Bring a store of an earlier goldloop up to date; a copy of it is kept beside it."""
    with at_work(file, "upgrade"):
        say("The store is up to date.")


@app.command(epilog="Example: goldloop migrate --to 0008")
def migrate(
    file: File = CAMPAIGN,
    down: Annotated[
        int | None, typer.Option(min=1, help="Go back this many schemas, for an older goldloop.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="Go to this schema, such as 0007.")] = None,
    lose_data: Annotated[
        bool,
        typer.Option("--lose-data", help="Go back even if the older schema cannot hold all."),
    ] = False,
) -> None:
    """Say which schema the store has, or go back to the one of an earlier goldloop."""
    from loop.campaign.config import load
    from loop.campaign.database import migrate as move
    from loop.campaign.database import schema_versions
    from loop.campaign.lock import writer

    config = load(file)
    version, schemas = schema_versions(config.store_url)
    if down is None and to is None:
        echo(version or "no store yet")
        if version is None:
            say("Next: `goldloop run` creates the store.")
        elif version == schemas[-1]:
            say("That is the newest schema; there is nothing to do.")
        else:
            say(f"The newest schema is {schemas[-1]}; next: `goldloop upgrade`.")
        return
    if down is not None and to is not None:
        raise LoopError("Give --down or --to, not both.")
    if down is not None:
        at = schemas.index(version) if version in schemas else 0
        if down > at:
            raise LoopError(
                f"--down {down} is too far: the store has schema {version or 'none'},"
                f" the first is {schemas[0]}."
            )
        to = schemas[at - down]
    if version == schemas[-1]:
        with open_store(config) as store, writer(store, config.campaign.name, "migrate"):
            lost = move(config.store_url, str(to), lose_data=lose_data, say=say)
    else:
        lost = move(config.store_url, str(to), lose_data=lose_data, say=say)
    for what in lost:
        say(f"Lost: {what}.")
    say(
        f"The store has schema {to} now."
        + (
            " Install the goldloop that reads it: the next command of this one that writes"
            " brings the store up to date again."
            if to != schemas[-1]
            else ""
        )
    )


@app.command(epilog="Example: goldloop backup films.backup")
def backup(
    out: Annotated[
        Path | None,
        typer.Argument(help="The file, or a folder where it gets a name with the time."),
    ] = None,
    file: File = CAMPAIGN,
    models: Annotated[
        bool, typer.Option("--with-models", help="Also the students' models; they are large.")
    ] = False,
    caches: Annotated[
        bool,
        typer.Option("--with-caches", help="Also embeddings and the LLM's hidden states."),
    ] = False,
) -> None:
    """Write the store, the campaign file, texts and results into one file; safe at any time."""
    from loop.campaign.config import load
    from loop.operate.backup import write_backup

    config = load(file)
    with open_store(config, read_only=True) as store:
        written = write_backup(config, store.engine, file, out, models=models, caches=caches)
        asked = store.project_id(config.campaign.name) is not None
    for what in written.left_out:
        say(f"Not in it: {what}.")
    if asked and (config.people.platform, config.label_studio.url) == ("label_studio", "local"):
        from connectors.label_studio.server import server_folder

        say(
            f"Not in it: the local Label Studio in {server_folder()}, with the answers that"
            " `goldloop pull` has not read yet."
        )
    say(f"Backed up {written.line()}; `goldloop restore {written.path}` brings it back.")
    echo(written.path)


@app.command(epilog="Example: goldloop restore films.backup")
def restore(
    backup: Annotated[Path, typer.Argument(help="A file that `goldloop backup` wrote.")],
    file: File = CAMPAIGN,
) -> None:
    """Make a campaign of a backup, in a folder and a database where there is none yet.

    A campaign file that is there already says where the store goes, which may be a database of the
    other kind; else the file of the backup is used.
    """
    from loop.operate.backup import restore_backup

    restored = restore_backup(backup, file)
    say(f"Restored {restored.line()}.")
    for what in restored.left_out:
        say(f"Missing, and needed for the next round: {what}.")
    say("Next: `goldloop status`, then `goldloop run`.")


@app.command(epilog="Example: goldloop fsck --repair")
def fsck(
    file: File = CAMPAIGN,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what can be repaired without losing anything.")
    ] = False,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Leave out the platform where people label."),
    ] = False,
) -> None:
    """Say whether store, files and people's answers fit together; repair what can be repaired."""
    from loop.campaign.config import load
    from loop.operate.fsck import check_campaign

    with ExitStack() as stack:
        if repair:
            ctx = stack.enter_context(at_work(file, "fsck"))
            config, store = ctx.config, ctx.store
        else:
            config = load(file)
            store = stack.enter_context(open_store(config, read_only=True))
        reviewer = None if offline else lambda: build_reviewer(config, store)
        left, platform = 0, config.people.platform_name
        for finding in list(check_campaign(config, store, reviewer)):
            echo(f"{finding.where}: {finding.what}")
            if repair and finding.repair is not None:
                echo(f"    repaired: {finding.repair()}")
            else:
                left += 1
                can = " (`goldloop fsck --repair` does it)" if finding.repair and not repair else ""
                echo(f"    to do: {finding.do}{can}")
    if left:
        raise typer.Exit(1)
    say(
        f"Store, files and {platform} fit together."
        if not offline
        else f"Store and files fit together; {platform} was not asked."
    )


@app.command(epilog="Example: goldloop forget ann@example.org")
def forget(
    person: Annotated[str, typer.Argument(help="Their name, as `goldloop people` shows it.")],
    file: File = CAMPAIGN,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another name of theirs, for notes. Give it once per name."),
    ] = None,
) -> None:
    """Replace a person's name by a pseudonym everywhere in the campaign; the figures stay."""
    from loop.operate.forget import forget_person

    with at_work(file, "forget") as ctx:
        done = forget_person(ctx.config, ctx.store, person, also or ())
    echo(done.pseudonym)
    say(
        f"{person} is {done.pseudonym} now, in {done.answers:,} answers, {done.mentions:,} other"
        f" rows and {len(done.files)} files, and will be when they answer again."
    )
    say("Their name is still in the following, which goldloop does not change:")
    for what in done.left:
        say(f"  - {what}.")
    say("Next: `goldloop report` writes the report again.")

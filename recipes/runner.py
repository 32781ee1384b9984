"""Functions of the recipes that run many trainings: draw the scenes, run side by side, print tables at the end."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from core import UserError
from util import script, signals
from util.store import formats
from util.store.files import make_folder, write_json

DRAWN = 'experiments/demo'
# Flags of stage 1 that recipes choose for each run, so that --more cannot have them.
CHOSEN = ('--seed', '--tag', '--loss_option')


def more_flags(text, chosen=CHOSEN):
    """Flags of stage 1 in one text, without those that the recipe chooses."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r}: {error}') from None
    taken = next((word for word in words if word.partition('=')[0] in chosen), None)
    if taken:
        raise argparse.ArgumentTypeError(f'{taken} is chosen by the recipe')
    return words


def draw_command(folder):
    """Return the command that draws the quickstart's scenes."""
    return ['-m', 'tools.make_demo_data', '--out', str(folder), '--seed', '0']


def draw_scenes(folder):
    """Draw the scenes if needed, and write few.json: a data set of the 300 scored scenes alone."""
    if not (folder / 'dataset.json').is_file():
        execute(draw_command(folder))
    content = json.loads((folder / 'dataset.json').read_text())
    content['lists']['train_aug'] = content['lists']['train']
    write_json(folder / 'few.json', content)


def execute(command, started=None, **options):
    """Run a command with this interpreter. Raises UserError if it fails; `started` collects the processes."""
    environment = {'OMP_NUM_THREADS': '1', **os.environ, 'PUZZLE_CAM_RECIPE': str(os.getpid())}
    process = subprocess.Popen([sys.executable, *command], stdin=subprocess.DEVNULL, env=environment, **options)
    if started is not None:
        started.append(process)
    if process.wait():
        raise UserError(f'{command[1] if command[0] == "-m" else command[0]} failed')


def execute_run(tag, commands, started):
    """Run the commands of a run up to the first that fails; return whether all succeeded."""
    log = formats.EXPERIMENTS / 'logs' / f'{tag}.out'
    make_folder(log.parent)
    with log.open('w') as file:
        for command in commands:
            try:
                execute(command, started, stdout=file, stderr=subprocess.STDOUT)
            except UserError as error:
                if not signals.received():  # which ends the commands that run
                    print(f'{tag}: {error}: see {log}', file=sys.stderr, flush=True)
                return False
    return True


def execute_runs(runs, jobs):
    """Execute runs, `jobs` at a time; return the tags of those that failed. Stop them if this program is stopped."""
    started = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            succeeded = pool.map(lambda tag: execute_run(tag, runs[tag], started), runs)
            ended = zip(runs, script.progress(succeeded, 'runs', len(runs)), strict=True)
            return [tag for tag, success in ended if not success]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                process.terminate()
            if signals.received():
                print('stopped; run the same command to go on', file=sys.stderr, flush=True)
            raise


def execute_every_run(runs, jobs):
    """Execute runs. Raises UserError if one failed: a table would show what it left, which may be of other flags."""
    failed = execute_runs(runs, jobs)
    if failed:
        raise UserError(f'{len(failed)} of {len(runs)} runs failed: see the lines above (no table is printed)')


def execute_summaries(summaries):
    """Print the tables and draw the pictures {title: command}. Raises UserError at the end if one failed."""
    failed = False
    for title, command in summaries.items():
        print(f'\n{title}', flush=True)
        try:
            execute(command)
        except UserError as error:
            failed = True
            print(error, file=sys.stderr, flush=True)
    if failed:
        raise UserError('not every table could be made: see the lines above')

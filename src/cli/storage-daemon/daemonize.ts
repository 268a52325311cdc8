/**
 * --daemonize: the process starts itself again in the background and ends when that one is ready. JavaScript
 * can't fork, so the second process reads the command line anew.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { programName } from './command-line.js';

/** Tells the second process what it is. */
const MARK = 'VDUSE_STORAGE_DAEMON_CHILD';
const READY = 'ready';
const FORWARDED_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Starts the daemon and returns the exit status: 0 once it is ready, 1 when it ended before. */
export async function startInBackground(args: readonly string[]): Promise<number> {
  const child = spawn(process.execPath, [...process.execArgv, process.argv[1], ...args], {
    detached: true,
    // Its errors come through this process, which ends: whoever reads ours to its end is not kept waiting.
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    env: { ...process.env, [MARK]: '1' },
  });
  child.stderr?.on('data', (chunk: Buffer) => process.stderr.write(chunk));
  const forward = (signal: NodeJS.Signals) => child.kill(signal);
  for (const signal of FORWARDED_SIGNALS) {
    process.on(signal, forward);
  }
  const status = await Promise.race([whenReady(child), whenEnded(child)]);
  // What was written before the message is readable by now; one turn of the event loop reads it.
  await new Promise((turned) => setImmediate(turned));
  return status;
}

async function whenReady(child: ChildProcess): Promise<number> {
  await new Promise<void>((ready) => {
    child.on('message', (message) => {
      if (message === READY) {
        ready();
      }
    });
  });
  return 0;
}

async function whenEnded(child: ChildProcess): Promise<number> {
  try {
    // Only after this event has its error output been read to the end.
    const [, signal] = (await once(child, 'close')) as [number | null, string | null];
    if (signal !== null) {
      process.stderr.write(`${programName}: the daemon was ended by ${signal} before it was ready\n`);
    }
  } catch (error) {
    process.stderr.write(`${programName}: cannot start the daemon: ${String(error)}\n`);
  }
  return 1;
}

/** The second process's side. Undefined in a process that was started by its user. */
export function backgroundProcess(): BackgroundProcess | undefined {
  if (process.env[MARK] === undefined || process.send === undefined) {
    return undefined;
  }
  // Not for the processes that this one may start.
  delete process.env[MARK];
  return new BackgroundProcess();
}

export class BackgroundProcess {
  /** Calls back when the first process ends before it was told that all is well: nobody waits any more. */
  onAbandoned(abandoned: () => void): void {
    process.once('disconnect', abandoned);
  }

  /** Lets the first process end, and leaves its directory, which may be unmounted then. */
  async ready(): Promise<void> {
    process.removeAllListeners('disconnect');
    await new Promise<void>((sent) => process.send!(READY, undefined, {}, () => sent()));
    if (process.connected) {
      process.disconnect();
    }
    process.chdir('/');
  }
}

/** Which ring a process uses: io_uring, or system calls where that is forbidden. */
import { SystemCallError, VduseError } from '../base/errors.js';
import { IoUring } from './io-uring.js';
import type { Ring } from './ring.js';
import { SystemCallRing } from './system-call-ring.js';

export const ringKinds = ['io_uring', 'system-calls'] as const;
export type RingKind = (typeof ringKinds)[number];

export interface RingChoice {
  readonly kind: RingKind;
  /** Why it is not io_uring; empty if it is. */
  readonly reason: string;
}

/** The environment variable that decides instead of the machine. */
export const ringVariable = 'VDUSE_RING';

/** Asks the machine, unless `VDUSE_RING` says what to take. Throws INVALID_ARGUMENT for a value that means nothing. */
export function chooseRing(environment: NodeJS.ProcessEnv = process.env): RingChoice {
  const wanted = environment[ringVariable] ?? '';
  switch (wanted) {
    case 'io_uring':
      return { kind: 'io_uring', reason: '' };
    case 'system-calls':
      return { kind: 'system-calls', reason: `${ringVariable} asks for it` };
    case '':
      return askMachine();
    default:
      throw new VduseError('INVALID_ARGUMENT', `${ringVariable} is '${wanted}', which is no ring`, {
        hint: `Set it to ${ringKinds.join(' or ')}, or not at all.`,
      });
  }
}

function askMachine(): RingChoice {
  try {
    new IoUring(1).close();
    return { kind: 'io_uring', reason: '' };
  } catch (error) {
    if (error instanceof SystemCallError) {
      return { kind: 'system-calls', reason: error.message };
    }
    throw error;
  }
}

/** Throws SYSTEM_CALL where the kernel or a seccomp filter refuses it. `entries`: a power of two. */
export function openRing(kind: RingKind, entries: number): Ring {
  return kind === 'io_uring' ? new IoUring(entries) : new SystemCallRing(entries);
}

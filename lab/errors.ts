/** Statuses of the lab itself, in the range that sysexits.h sets aside, so that a command's own stay apart. */
export const EXIT_USAGE = 64;
export const EXIT_CANNOT_PREPARE = 69;
export const EXIT_MACHINE_FAILED = 70;
export const EXIT_TIMED_OUT = 75;

interface LabErrorDetails {
  exitStatus?: number;
  output?: string;
  consoleTail?: string;
  cause?: unknown;
}

/** Something that went wrong with the lab, as opposed to with the command that it ran. */
export class LabError extends Error {
  override readonly name = 'LabError';
  readonly exitStatus: number;
  /** What the command had printed by then. */
  readonly output: string;
  /** The last lines of the machine's kernel console. */
  readonly consoleTail: string;

  constructor(message: string, details: LabErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.exitStatus = details.exitStatus ?? EXIT_CANNOT_PREPARE;
    this.output = details.output ?? '';
    this.consoleTail = details.consoleTail ?? '';
  }
}

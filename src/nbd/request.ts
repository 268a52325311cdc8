/** One request of the transmission phase, and whether it may be carried out. */

import { Command, CommandFlag, Magic, NbdErrno, readU16, readU32, readU64 } from '../base/nbd-protocol.js';
import type { ServedExport } from './served-export.js';

/** What client and server agreed on in the handshake. */
export interface SessionTerms {
  readonly served: ServedExport;
  /** Bytes: the size that the client was told. */
  readonly size: number;
  readonly structuredReplies: boolean;
  /** base:allocation was selected, for this export. */
  readonly allocationContext: boolean;
}

/** A request's fields. Objects of this kind are used again, so that a request allocates none. */
export class Request {
  flags = 0;
  command = 0;
  /** Opaque to us, and not necessarily unique: it is only ever sent back. */
  cookieHigh = 0;
  cookieLow = 0;
  offset = 0;
  length = 0;

  /** "Request message". Returns false when it does not start with the magic number. */
  decode(bytes: Uint8Array, at: number): boolean {
    if (readU32(bytes, at) !== Magic.request) {
      return false;
    }
    this.flags = readU16(bytes, at + 4);
    this.command = readU16(bytes, at + 6);
    this.cookieHigh = readU32(bytes, at + 8);
    this.cookieLow = readU32(bytes, at + 12);
    this.offset = readU64(bytes, at + 16);
    this.length = readU32(bytes, at + 24);
    return true;
  }

  has(flag: number): boolean {
    return (this.flags & flag) !== 0;
  }

  /** Bytes that the request, or its answer, carries. */
  get payloadLength(): number {
    return this.command === Command.READ || this.command === Command.WRITE ? this.length : 0;
  }
}

export interface Refusal {
  readonly errno: number;
  readonly text: string;
}

const commandNames = new Map<number, string>(
  Object.entries(Command).map(([name, value]) => [value, name.toLowerCase().replace('_', ' ')]),
);

/** Decides on requests by the terms of one session. */
export class RequestCheck {
  readonly #terms: SessionTerms;
  /** The flags that each command may have; a command that is not offered has no entry. */
  readonly #flags = new Map<number, number>();

  constructor(terms: SessionTerms) {
    this.#terms = terms;
    const { target, readOnly } = terms.served;
    const fua = target.fua || target.flush !== undefined ? CommandFlag.FUA : 0;
    const offer = (condition: boolean, command: number, flags = 0): void => {
      if (condition) {
        this.#flags.set(command, flags | fua);
      }
    };
    offer(true, Command.READ, terms.structuredReplies ? CommandFlag.DF : 0);
    offer(!readOnly, Command.WRITE);
    offer(target.flush !== undefined, Command.FLUSH);
    offer(!readOnly && target.trim !== undefined, Command.TRIM);
    offer(target.cache !== undefined, Command.CACHE);
    const fastZero = target.fastZero === true ? CommandFlag.FAST_ZERO : 0;
    offer(
      !readOnly && target.writeZeroes !== undefined,
      Command.WRITE_ZEROES,
      CommandFlag.NO_HOLE | fastZero,
    );
    offer(terms.allocationContext, Command.BLOCK_STATUS, CommandFlag.REQ_ONE);
  }

  /** "Error values" says which error answers what. Undefined: carry it out. */
  refuse(request: Request): Refusal | undefined {
    const flags = this.#flags.get(request.command);
    if (flags === undefined) {
      return this.#refuseCommand(request);
    }
    if ((request.flags & ~flags) !== 0) {
      const unknown = (request.flags & ~flags).toString(16);
      return refusal(request, NbdErrno.EINVAL, `flags 0x${unknown} were not offered for it`);
    }
    if (request.command === Command.FLUSH) {
      const isEmpty = request.offset === 0 && request.length === 0;
      return isEmpty ? undefined : refusal(request, NbdErrno.EINVAL, 'offset and length must be 0');
    }
    return this.#refuseRange(request);
  }

  #refuseCommand(request: Request): Refusal {
    const { command } = request;
    const writes = command === Command.WRITE || command === Command.TRIM || command === Command.WRITE_ZEROES;
    return writes && this.#terms.served.readOnly
      ? refusal(request, NbdErrno.EPERM, 'the export is read-only')
      : refusal(request, NbdErrno.EINVAL, 'the command was not offered');
  }

  #refuseRange(request: Request): Refusal | undefined {
    const { command, offset, length } = request;
    const { size } = this.#terms;
    const { minimum, maximum } = this.#terms.served.blockSizes;
    // A sum above 2^53 may be rounded, but never to below the size.
    if (offset + length > size) {
      const isWrite = command === Command.WRITE || command === Command.WRITE_ZEROES;
      const errno = isWrite ? NbdErrno.ENOSPC : NbdErrno.EINVAL;
      return refusal(request, errno, `the export ends at ${size}`);
    }
    if (offset % minimum !== 0 || length % minimum !== 0) {
      return refusal(request, NbdErrno.EINVAL, `not a multiple of the minimum block size, ${minimum}`);
    }
    if (request.payloadLength > maximum) {
      const splits = command === Command.READ && this.#terms.structuredReplies;
      const errno = splits ? NbdErrno.EOVERFLOW : NbdErrno.EINVAL;
      return refusal(request, errno, `longer than the maximum payload, ${maximum} bytes`);
    }
    if (length === 0 && command === Command.BLOCK_STATUS) {
      return refusal(request, NbdErrno.EINVAL, 'no extent describes 0 bytes');
    }
    return undefined;
  }
}

export function refusal(request: Request, errno: number, reason: string): Refusal {
  const name = commandNames.get(request.command) ?? `command ${request.command}`;
  return { errno, text: `${name} of ${request.length} bytes at ${request.offset}: ${reason}` };
}

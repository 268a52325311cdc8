/**
 * Memory whose file another process can cut short under us, as a vhost-user front-end can. Touching a page that is
 * gone is a SIGBUS, which would end the process and every other client with it. A guard turns it into an answer: the
 * whole region is replaced by anonymous memory, the access goes on and finds zeroes, and `damaged` says so.
 *
 * JavaScript can't run inside a signal handler, so the handler is machine code (sigbus-handler.ts). It is one for the
 * process, whatever thread faults, and looks the address up in a table that all threads share.
 */
import { VduseError } from '../base/errors.js';
import { addressOf, bindLibc, check, libcCalls, viewMemory } from './ffi.js';
import { mapAnonymous, pageSize, unmap } from './memory.js';
import {
  guardEntriesMax,
  guardEntryWords,
  handlerMagic,
  handlerOffset,
  handlerPage,
  restorerOffset,
} from './sigbus-handler.js';

const SIGBUS = 7;
const SYS_RT_SIGACTION = process.arch === 'arm64' ? 134 : 13;
const SA_SIGINFO = 0x4;
const SA_ONSTACK = 0x0800_0000;
const SA_RESTORER = 0x0400_0000;
const PROT_READ = 1;
const PROT_EXEC = 4;

const mprotect = bindLibc<(address: number, length: number, protection: number) => number>(
  'mprotect',
  'int',
  ['uintptr_t', 'size_t', 'int'],
);

/** Words of an entry: the handler reads START and END, and counts HITS. */
const Entry = { START: 0, END: 1, HITS: 2, CLAIM: 3 } as const;

export interface GuardedMemory {
  /** Whether something touched a page that was gone. From then on all of the region is zeroes that nobody shares. */
  readonly damaged: boolean;
  /** Ends the guard; before the memory is unmapped. */
  release(): void;
}

class TableEntry implements GuardedMemory {
  readonly #table: BigInt64Array;
  readonly #first: number;
  #released = false;

  constructor(table: BigInt64Array, first: number) {
    this.#table = table;
    this.#first = first;
  }

  get damaged(): boolean {
    return !this.#released && Atomics.load(this.#table, this.#first + Entry.HITS) !== 0n;
  }

  release(): void {
    if (!this.#released) {
      this.#released = true;
      // The end first: without one no address lies inside, so the handler skips a half-cleared entry.
      for (const word of [Entry.END, Entry.START, Entry.HITS, Entry.CLAIM]) {
        Atomics.store(this.#table, this.#first + word, 0n);
      }
    }
  }
}

let installed: BigInt64Array | undefined;

/**
 * Guards a map of ours: `address` is where it starts, `length` all of its bytes. Throws NOT_SUPPORTED when too many
 * are guarded already, and SYSTEM_CALL where the handler can't be installed.
 */
export function guardMemory(range: { address: number; length: number }): GuardedMemory {
  installed ??= install();
  const table = installed;
  for (let n = 0; n < guardEntriesMax; n++) {
    const first = n * guardEntryWords;
    if (Atomics.compareExchange(table, first + Entry.CLAIM, 0n, 1n) === 0n) {
      const end = range.address + Math.ceil(range.length / pageSize) * pageSize;
      Atomics.store(table, first + Entry.START, BigInt(range.address));
      // Last: it makes the entry valid. The handler reads the end, the start, and the end again.
      Atomics.store(table, first + Entry.END, BigInt(end));
      return new TableEntry(table, first);
    }
  }
  throw new VduseError('NOT_SUPPORTED', `more than ${guardEntriesMax} memory regions would be guarded`, {
    hint: 'Serve fewer clients from one process.',
  });
}

/** struct sigaction as the kernel has it: handler, flags, restorer and mask, 64 bits each. */
function setAction(action: BigUint64Array | undefined): BigUint64Array {
  const before = new BigUint64Array(new ArrayBuffer(32));
  const to = action === undefined ? 0 : addressOf(action);
  check(
    libcCalls.syscall6(SYS_RT_SIGACTION, SIGBUS, to, addressOf(before), 8, 0, 0),
    'rt_sigaction',
    'SIGBUS',
  );
  return before;
}

/** The table of a handler that is ours, installed by another thread's instance of this module. */
function tableOf(action: BigUint64Array): BigInt64Array | undefined {
  const handler = Number(action[0]);
  // Default and ignored are 0 and 1. What lies in a handler's page is there to be read.
  if (handler < pageSize || handler % pageSize !== handlerOffset) {
    return undefined;
  }
  const [magic, table] = new BigUint64Array(viewMemory(handler - handlerOffset, 16));
  return magic === handlerMagic ? viewTable(Number(table)) : undefined;
}

const tableBytes = guardEntriesMax * guardEntryWords * 8;

function viewTable(address: number): BigInt64Array {
  return new BigInt64Array(viewMemory(address, tableBytes));
}

/** Installs the handler, or finds the one that is. */
function install(): BigInt64Array {
  const before = setAction(undefined);
  const known = tableOf(before);
  if (known !== undefined) {
    return known;
  }
  const table = mapAnonymous(tableBytes);
  const page = mapAnonymous(pageSize);
  new Uint8Array(viewMemory(page, pageSize)).set(handlerPage({ table, previous: before }));
  // The kernel makes the instruction cache see what was written when a page first becomes executable.
  if (mprotect(page, pageSize, PROT_READ | PROT_EXEC) !== 0) {
    check(-1, 'mprotect', 'of the SIGBUS handler');
  }
  const restorer = restorerOffset === undefined ? 0 : page + restorerOffset;
  const flags = SA_SIGINFO | SA_ONSTACK | (restorer === 0 ? 0 : SA_RESTORER);
  const action = new BigUint64Array(new ArrayBuffer(32));
  action.set([BigInt(page + handlerOffset), BigInt(flags), BigInt(restorer), 0n]);
  const replaced = setAction(action);
  const first = tableOf(replaced);
  if (first !== undefined) {
    // Another thread was faster. Our page stays: a thread may be in it.
    setAction(replaced);
    unmap(table, tableBytes);
    return first;
  }
  return viewTable(table);
}

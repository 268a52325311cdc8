/**
 * A generic netlink socket. The kernel works on a request inside the write that brings it, and on a dump
 * inside the reads, and while it does it holds locks that every other user of generic netlink waits for. So
 * no call here runs on the calling thread: writes and reads go through libuv's thread pool, which also
 * reports their errno. The socket is non-blocking only so that a read that finds no answer says so.
 */
import { read, write } from 'node:fs';
import { promisify } from 'node:util';
import { VduseError } from '../base/errors.js';
import { Errno } from './errno.js';
import { closeFd } from './fd.js';
import { check, systemCallError } from './ffi.js';
import {
  decodeGeneric,
  decodeMessages,
  decodeOutcome,
  encodeRequest,
  type GenericMessage,
  type NetlinkOutcome,
  NLM_F,
  NLMSG,
} from './netlink-message.js';
import {
  connectCall,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_RAW,
  setsockoptCall,
  socketCall,
} from './socket-calls.js';

const AF_NETLINK = 16;
const NETLINK_GENERIC = 16;
const SOL_NETLINK = 270;
const NETLINK_CAP_ACK = 10;
const NETLINK_EXT_ACK = 11;

/** The family that knows the others' numbers: GENL_ID_CTRL, its version, one command, two attributes. */
const CONTROL_FAMILY = 0x10;
const CONTROL_VERSION = 2;
const CONTROL_GET_FAMILY = 3;
const CONTROL_ATTRIBUTE_FAMILY_ID = 1;
const CONTROL_ATTRIBUTE_FAMILY_NAME = 2;

/** The kernel fills a dump's parts to at most 32 KiB; a part that does not fit here would be cut short. */
const READ_BYTES = 64 << 10;
/** Parts of one dump: more devices than a machine can have minors fit into fewer. */
const READS_MAX = 4096;

const writeAsync = promisify(write);
const readAsync = promisify(read);

export interface GenericCommand {
  readonly family: number;
  readonly command: number;
  readonly version: number;
  /** Asks for all objects instead of one. */
  readonly dump?: boolean;
  readonly attributes?: readonly (readonly [type: number, value: string])[];
}

/** What the kernel answered: the outcome, which may be an errno, and the messages before it. */
export interface GenericAnswer extends NetlinkOutcome {
  readonly messages: readonly GenericMessage[];
}

export class GenericNetlinkSocket {
  readonly #fd: number;
  readonly #buffer = new Uint8Array(READ_BYTES);
  #sequence = 0;

  constructor() {
    this.#fd = openSocket();
  }

  close(): void {
    closeFd(this.#fd);
  }

  /** One request and all of its answer. One at a time for each socket. */
  async transact(command: GenericCommand): Promise<GenericAnswer> {
    this.#sequence += 1;
    const sequence = this.#sequence;
    const request = encodeRequest({
      family: command.family,
      command: command.command,
      version: command.version,
      sequence,
      flags: NLM_F.REQUEST | NLM_F.ACK | (command.dump === true ? NLM_F.DUMP : 0),
      attributes: command.attributes ?? [],
    });
    await this.#write(request);
    const messages: GenericMessage[] = [];
    for (let reads = 0; reads < READS_MAX; reads++) {
      for (const message of decodeMessages(await this.#read())) {
        // What is left of an answer that was given up before ours.
        if (message.sequence !== sequence) {
          continue;
        }
        if (message.type === NLMSG.ERROR || message.type === NLMSG.DONE) {
          return { ...decodeOutcome(message), messages };
        }
        if (message.type === command.family) {
          messages.push(decodeGeneric(message));
        }
      }
    }
    throw new VduseError('PROTOCOL', `netlink: an answer did not end within ${READS_MAX} parts`);
  }

  /** The number of a family, or undefined where the kernel (or this network namespace) does not have it. */
  async resolveFamily(name: string): Promise<number | undefined> {
    const answer = await this.transact({
      family: CONTROL_FAMILY,
      command: CONTROL_GET_FAMILY,
      version: CONTROL_VERSION,
      attributes: [[CONTROL_ATTRIBUTE_FAMILY_NAME, name]],
    });
    if (answer.errno === Errno.ENOENT) {
      return undefined;
    }
    if (answer.errno !== 0) {
      throw systemCallError('netlink', answer.errno, `looking up family "${name}" ${answer.text}`.trimEnd());
    }
    const family = answer.messages[0]?.attributes.u16(CONTROL_ATTRIBUTE_FAMILY_ID);
    if (family === undefined) {
      throw new VduseError('PROTOCOL', `netlink: the answer about family "${name}" has no number`);
    }
    return family;
  }

  async #write(bytes: Uint8Array): Promise<void> {
    const { bytesWritten } = await asSystemCall('write', writeAsync(this.#fd, bytes, 0, bytes.length, null));
    if (bytesWritten !== bytes.length) {
      throw new VduseError('PROTOCOL', `netlink: ${bytesWritten} of ${bytes.length} bytes were sent`);
    }
  }

  async #read(): Promise<Uint8Array> {
    const reading = readAsync(this.#fd, this.#buffer, 0, READ_BYTES, null);
    const { bytesRead } = await asSystemCall('read', reading);
    // A copy: messages point into it, and the next read of a dump overwrites the buffer.
    return this.#buffer.slice(0, bytesRead);
  }
}

/** A socket that is connected to the kernel: without that, any process could send it forged answers. */
function openSocket(): number {
  const type = SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK;
  const fd = check(socketCall(AF_NETLINK, type, NETLINK_GENERIC), 'socket', '(generic netlink)');
  try {
    // struct sockaddr_nl: family u16, padding u16, port u32 (0 is the kernel), groups u32.
    const kernel = new Uint8Array(new ArrayBuffer(12));
    kernel[0] = AF_NETLINK;
    check(connectCall(fd, kernel, kernel.length), 'connect', '(generic netlink)');
    const enabled = Int32Array.of(1);
    for (const option of [NETLINK_EXT_ACK, NETLINK_CAP_ACK]) {
      check(setsockoptCall(fd, SOL_NETLINK, option, enabled, 4), 'setsockopt', `netlink option ${option}`);
    }
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  return fd;
}

/** Node's errors of fs calls as ours. */
async function asSystemCall<T>(call: string, promise: Promise<T>): Promise<T> {
  try {
    return await promise;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).errno;
    if (code === undefined) {
      throw error;
    }
    if (-code === Errno.EAGAIN) {
      throw new VduseError('PROTOCOL', 'netlink: the kernel took a request and gave no answer', {
        cause: error,
      });
    }
    throw systemCallError(call, -code, '(generic netlink)');
  }
}

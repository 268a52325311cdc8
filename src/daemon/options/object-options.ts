/** Objects as --object and object-add write them (QEMU: qapi/qom.json, ObjectOptions). */
import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { parseCpuList } from '../../base/cpu-list.js';
import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import { systemReason } from '../../base/socket-errors.js';
import type { TlsCredentials } from '../../base/tls-credentials.js';
import type { ThrottleLimits } from '../../block/throttle-group.js';
import type { NamedThread } from '../../device/queue-host.js';
import { choice, declare, struct, variants } from '../../qmp/qapi.js';
import { type Authorization, authzObjectOptions, toAuthorization } from './authz-options.js';
import { throttleLimitsStruct, throttleProperties, toThrottleLimits } from './throttle-options.js';
import { tlsObjectOptions, toTlsCredentials } from './tls-options.js';

export const objectOptions = declare((s) =>
  variants('qom-type', [
    struct({
      'qom-type': z.literal('iothread'),
      id: s.str,
      'poll-max-ns': s.int.optional(),
      // Ours: QEMU leaves it to whoever knows the thread's id.
      'cpu-affinity': s.str.optional(),
      // How QEMU's loop polls and batches. Queue threads here adapt by themselves; see docs/storage-daemon.md.
      'poll-grow': s.int.optional(),
      'poll-shrink': s.int.optional(),
      'aio-max-batch': s.int.optional(),
      'thread-pool-min': s.int.optional(),
      'thread-pool-max': s.int.optional(),
    }),
    struct({
      'qom-type': z.literal('secret'),
      id: s.str,
      data: s.str.optional(),
      file: s.str.optional(),
      format: choice('raw', 'base64').optional(),
    }),
    struct({
      'qom-type': z.literal('throttle-group'),
      id: s.str,
      limits: throttleLimitsStruct(s).optional(),
      ...throttleProperties(s, 'x-'),
    }),
    ...tlsObjectOptions(s),
    ...authzObjectOptions(s),
  ]),
);

type ObjectOptions = z.output<typeof objectOptions.json>;

export type UserObject =
  | { readonly type: 'throttle-group'; readonly id: string; readonly limits: ThrottleLimits }
  | ({ readonly type: 'iothread'; readonly id: string } & Omit<NamedThread, 'name'>)
  | { readonly type: 'secret'; readonly id: string; readonly secret: Buffer }
  | {
      readonly type: 'tls-creds-x509' | 'tls-creds-psk';
      readonly id: string;
      /** Reads the files; `secret` finds what a secret object holds. */
      readonly load: (secret: (id: string) => Uint8Array) => TlsCredentials;
    }
  | ({
      readonly type: 'authz-simple' | 'authz-list' | 'authz-list-file' | 'authz-pam';
      readonly id: string;
    } & Authorization);

/** Throws INVALID_ARGUMENT, SYSTEM_CALL when a file of it can't be read, or NOT_SUPPORTED. */
export function toUserObject(options: ObjectOptions): UserObject {
  const { id } = options;
  switch (options['qom-type']) {
    case 'iothread':
      return toIothread(options);
    case 'throttle-group':
      return { type: 'throttle-group', id, limits: toThrottleLimits(options) };
    case 'secret':
      return { type: 'secret', id, secret: readSecret(options) };
    case 'tls-creds-x509':
    case 'tls-creds-psk':
      return { type: options['qom-type'], id, load: (secret) => toTlsCredentials(options, secret) };
    default:
      return { type: options['qom-type'], id, ...toAuthorization(options) };
  }
}

type IothreadOptions = Extract<ObjectOptions, { 'qom-type': 'iothread' }>;

/** A time for polling longer than ours can be is cut, as any time is an upper bound only. */
function toIothread(options: IothreadOptions): UserObject {
  const { id, 'poll-max-ns': pollMaxNs, 'cpu-affinity': cpus } = options;
  if (pollMaxNs !== undefined && pollMaxNs < 0) {
    throw new VduseError('INVALID_ARGUMENT', 'poll-max-ns value must be in range [0, 9223372036854775807]');
  }
  return {
    type: 'iothread',
    id,
    ...(pollMaxNs === undefined ? {} : { pollUs: Math.min(pollMaxNs / 1000, limits.pollUsMax) }),
    ...(cpus === undefined ? {} : { cpus: parseCpuList(cpus) }),
  };
}

type SecretOptions = Extract<ObjectOptions, { 'qom-type': 'secret' }>;

function readSecret(options: SecretOptions): Buffer {
  const { data, file, format = 'raw' } = options;
  if (data !== undefined && file !== undefined) {
    throw new VduseError('INVALID_ARGUMENT', "'file' and 'data' are mutually exclusive");
  }
  const stored = file === undefined ? Buffer.from(data ?? missing()) : readSecretFile(file);
  if (format === 'raw') {
    return stored;
  }
  const text = stored.toString('latin1').trim();
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(text) || text.length % 4 !== 0) {
    throw new VduseError('INVALID_ARGUMENT', `secret '${options.id}': the data is not base64`);
  }
  return Buffer.from(text, 'base64');
}

function missing(): never {
  throw new VduseError('INVALID_ARGUMENT', "Either 'file' or 'data' must be provided");
}

function readSecretFile(file: string): Buffer {
  try {
    return readFileSync(file);
  } catch (error) {
    throw new VduseError('SYSTEM_CALL', `Unable to read ${file}: ${systemReason(error)}`, { cause: error });
  }
}

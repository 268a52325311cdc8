/** The objects that users create, to which nodes, exports and the NBD server refer by id. */
import { VduseError } from '../base/errors.js';
import type { TlsCredentials } from '../base/tls-credentials.js';
import { ThrottleGroup } from '../block/throttle-group.js';
import type { NamedThread } from '../device/queue-host.js';
import { compact } from '../qmp/qapi.js';
import { identifierHint, isIdentifier } from './identifier.js';
import type { UserObject } from './options/object-options.js';
import {
  fromThrottleLimits,
  type ThrottleLimitValues,
  toThrottleLimits,
} from './options/throttle-options.js';

export class ObjectTable {
  readonly #objects = new Map<string, UserObject>();
  readonly #throttleGroups = new Map<string, ThrottleGroup>();
  readonly #credentials = new Map<string, TlsCredentials>();

  get objects(): readonly UserObject[] {
    return [...this.#objects.values()];
  }

  add(object: UserObject): void {
    if (!isIdentifier(object.id)) {
      throw new VduseError('INVALID_ARGUMENT', "Parameter 'id' expects an identifier", {
        hint: identifierHint,
      });
    }
    if (this.#objects.has(object.id)) {
      throw new VduseError(
        'ALREADY_EXISTS',
        `attempt to add duplicate property '${object.id}' to object (type 'container')`,
        { hint: `there is an object with the id '${object.id}' already` },
      );
    }
    if ('load' in object) {
      this.#credentials.set(
        object.id,
        object.load((id) => this.secret(id)),
      );
    }
    this.#objects.set(object.id, object);
    if (object.type === 'throttle-group') {
      const group = new ThrottleGroup();
      group.configure(object.limits);
      this.#throttleGroups.set(object.id, group);
    }
  }

  /** Puts an object that is made of other options in the place of the one with its id and type. Throws NOT_FOUND. */
  replace(object: UserObject): void {
    if (this.#objects.get(object.id)?.type !== object.type) {
      throw new VduseError('NOT_FOUND', `object '${object.id}' not found`);
    }
    this.#objects.set(object.id, object);
  }

  throttleGroup(id: string): ThrottleGroup | undefined {
    return this.#throttleGroups.get(id);
  }

  /** Those that are not named stay. Throws NOT_FOUND, and INVALID_ARGUMENT with QEMU's words. */
  setThrottleLimits(id: string, values: ThrottleLimitValues): void {
    const object = this.#objects.get(id);
    const group = this.#throttleGroups.get(id);
    if (object?.type !== 'throttle-group' || group === undefined) {
      throw new VduseError('NOT_FOUND', `Throttle group '${id}' not found`);
    }
    const limits = toThrottleLimits({ limits: { ...fromThrottleLimits(object.limits), ...values } });
    group.configure(limits);
    this.#objects.set(id, { ...object, limits });
  }

  /** The threads of iothreads. Throws NOT_FOUND unless all of them are there. */
  threads(ids: readonly string[]): NamedThread[] {
    return ids.map((id) => {
      const object = this.#objects.get(id);
      if (object?.type !== 'iothread') {
        throw new VduseError('NOT_FOUND', `iothread "${id}" not found`, {
          hint: `create it before: --object iothread,id=${id}`,
        });
      }
      const { cpus, pollUs } = object;
      return { name: id, ...compact({ cpus, pollUs }) };
    });
  }

  /** A secret's bytes. Throws NOT_FOUND. */
  secret(id: string): Uint8Array {
    const object = this.#objects.get(id);
    if (object?.type !== 'secret') {
      throw new VduseError('NOT_FOUND', `No secret with id '${id}'`, {
        hint: `create it before: --object secret,id=${id},file=PATH`,
      });
    }
    return object.secret;
  }

  /** What a tls-creds object holds. Throws NOT_FOUND. */
  tlsCredentials(id: string): TlsCredentials {
    if (!this.#objects.has(id)) {
      throw new VduseError('NOT_FOUND', `No TLS credentials with id '${id}'`, {
        hint: `create them before: --object tls-creds-x509,id=${id},endpoint=...,dir=...`,
      });
    }
    const credentials = this.#credentials.get(id);
    if (credentials === undefined) {
      throw new VduseError('INVALID_ARGUMENT', `Object with id '${id}' is not TLS credentials`);
    }
    return credentials;
  }

  /** Whether an authz object lets somebody in. Throws NOT_FOUND, and what the object throws. */
  authorize(id: string, name: string): boolean {
    const object = this.#objects.get(id);
    if (object === undefined) {
      throw new VduseError('NOT_FOUND', `Cannot find QAuthZ object ID ${id}`);
    }
    if (!('isAllowed' in object)) {
      throw new VduseError('INVALID_ARGUMENT', `Object '${id}' is not a QAuthZ subclass`);
    }
    return object.isAllowed(name);
  }

  delete(id: string, inUse: boolean): void {
    if (!this.#objects.has(id)) {
      throw new VduseError('NOT_FOUND', `object '${id}' not found`);
    }
    if (inUse) {
      throw new VduseError('BUSY', `object '${id}' is in use, can not be deleted`);
    }
    this.#objects.delete(id);
    this.#throttleGroups.delete(id);
    this.#credentials.delete(id);
  }
}

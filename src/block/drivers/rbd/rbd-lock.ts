/**
 * The exclusive lock of an image that is opened for writing. A living owner keeps it: two writers would spoil each
 * other's file system. An owner that does not answer is shut out of the cluster first (blocklisted), so that none of
 * its writes can arrive late, and then loses the lock: within seconds, where Ceph by itself takes half a minute.
 */
import { VduseError } from '../../../base/errors.js';
import { Errno } from '../../../native/errno.js';
import {
  acquireLock,
  answeringClients,
  breakLock,
  ImageFeature,
  imageFeatures,
  imageId,
  lockOwner,
  watchingClients,
} from '../../../native/librbd-control.js';
import type { BlockServices, RbdNodeOptions } from '../../node.js';
import { imageName, rbdError } from './rbd-errors.js';

/** How long an owner may take to answer. A living one needs milliseconds. librados counts whole seconds. */
const ownerAnswerMs = 2000;
/** Owners may come and go while we look. */
const attemptsMax = 5;

export interface LockRequest {
  readonly pool: number;
  readonly image: number;
  readonly options: RbdNodeOptions;
  readonly services: BlockServices;
}

/** Throws IMAGE_LOCKED where a living client holds the lock, or what the cluster answers. */
export async function lockImage(request: LockRequest): Promise<void> {
  const { image, options } = request;
  const features = await imageFeatures(image);
  if (features < 0) {
    throw rbdError(options, 'read the features of', features);
  }
  if ((features & ImageFeature.EXCLUSIVE_LOCK) === 0) {
    return;
  }
  for (let attempt = 0; attempt < attemptsMax; attempt++) {
    const owner = await lockOwner(image);
    if (typeof owner === 'number') {
      throw rbdError(options, 'read the lock of', owner);
    }
    if (owner !== undefined) {
      await removeOwner(request, owner);
      continue;
    }
    const result = await acquireLock(image);
    if (result === 0) {
      return;
    }
    if (!isOneOf(result, Errno.EBUSY, Errno.EAGAIN, Errno.EROFS)) {
      throw rbdError(options, 'lock', result);
    }
  }
  throw locked(options, 'other clients take its exclusive lock again and again');
}

async function removeOwner(request: LockRequest, owner: string): Promise<void> {
  const { image, options, services } = request;
  const client = `the client at ${owner}`;
  if (await answers(request, owner)) {
    throw locked(options, `${client} holds its exclusive lock and is alive`);
  }
  const result = await breakLock(image, owner);
  // It may have been released, or have changed hands, meanwhile: the caller looks again.
  if (result < 0 && !isOneOf(result, Errno.ENOENT, Errno.EBUSY)) {
    throw rbdError(options, `take the lock of ${client}, which does not answer, from`, result);
  }
  if (result === 0) {
    services.logger.warn(
      { node: options.nodeName },
      `${client} held the exclusive lock of '${imageName(options)}' and does not answer: it is shut out of the cluster, and the lock is ours`,
    );
  }
}

/** Whether the client at this address watches the image, as a lock's owner does, and answers. */
async function answers(request: LockRequest, owner: string): Promise<boolean> {
  const { image, pool, options } = request;
  const watching = await watchingClients(image, owner);
  if (typeof watching === 'number') {
    throw rbdError(options, 'list the users of', watching);
  }
  if (watching.length === 0) {
    return false;
  }
  const id = await imageId(image);
  if (typeof id === 'number') {
    throw rbdError(options, 'read the id of', id);
  }
  const answering = await answeringClients(pool, `rbd_header.${id}`, ownerAnswerMs);
  if (typeof answering === 'number') {
    throw rbdError(options, 'ask the owner of the lock of', answering);
  }
  return watching.some((client) => answering.has(client));
}

function isOneOf(result: number, ...errnos: number[]): boolean {
  return errnos.includes(-result);
}

function locked(options: RbdNodeOptions, why: string): VduseError {
  return new VduseError('IMAGE_LOCKED', `cannot open '${imageName(options)}' for writing: ${why}`, {
    hint: `'rbd status ${imageName(options)}' tells who uses it. It can be opened read-only.`,
  });
}

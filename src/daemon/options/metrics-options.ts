/** Where --metrics listens. Not in QEMU. */
import type { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import { declare, struct } from '../../qmp/qapi.js';
import type { SocketAddress } from '../../qmp/socket-address.js';
import { isLoopback, socketAddressOptions, toSocketAddress } from './socket-address.js';

export const metricsOptions = declare((s) => struct({ addr: socketAddressOptions(s) }));

/** Throws INVALID_ARGUMENT or NOT_SUPPORTED. */
export function toMetricsAddress({ addr }: z.output<typeof metricsOptions.json>): SocketAddress {
  const address = toSocketAddress(addr);
  if (address.type === 'inet' && !isLoopback(address.host)) {
    throw new VduseError('NOT_SUPPORTED', `metrics: host '${address.host}' is not a loopback address`, {
      hint: 'use a Unix socket or 127.0.0.1, with a proxy that knows who may look',
    });
  }
  return address;
}

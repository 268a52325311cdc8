/** Nodes of the block driver nbd (QEMU: qapi/block-core.json, BlockdevOptionsNbd). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import type { NbdNodeOptions } from '../../block/node.js';
import { compact, type Scalars, struct } from '../../qmp/qapi.js';
import { socketAddressOptions, toSocketAddress } from './socket-address.js';

const members = (s: Scalars) => ({
  driver: z.literal('nbd'),
  server: socketAddressOptions(s),
  export: s.str.optional(),
  'tls-creds': s.str.optional(),
  'tls-hostname': s.str.optional(),
  'x-dirty-bitmap': s.str.optional(),
  'reconnect-delay': s.uint32.optional(),
  'open-timeout': s.uint32.optional(),
});

/** `common` are the members of every block driver. */
export const nbdNodeOptions = <C extends z.ZodRawShape>(s: Scalars, common: C) =>
  struct({ ...members(s), ...common });

type NbdMembers = z.output<z.ZodObject<ReturnType<typeof members>, z.core.$strict>>;

/** What is the driver's own. Throws INVALID_ARGUMENT or NOT_SUPPORTED. */
export function toNbdNodeOptions(
  options: NbdMembers & { readonly 'auto-read-only'?: boolean | undefined },
): Omit<NbdNodeOptions, 'nodeName'> {
  if (options['x-dirty-bitmap'] !== undefined) {
    throw new VduseError('NOT_SUPPORTED', "'x-dirty-bitmap' is not supported", { hint: 'Leave it out.' });
  }
  if (options['tls-hostname'] !== undefined && options['tls-creds'] === undefined) {
    throw new VduseError('INVALID_ARGUMENT', 'tls-hostname is not supported without tls-creds');
  }
  return {
    driver: 'nbd',
    server: toSocketAddress(options.server),
    ...compact({
      exportName: options.export,
      tlsCreds: options['tls-creds'],
      tlsHostname: options['tls-hostname'],
      reconnectDelay: options['reconnect-delay'],
      openTimeout: options['open-timeout'],
      autoReadOnly: options['auto-read-only'],
    }),
  };
}

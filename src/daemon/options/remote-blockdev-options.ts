/** Block nodes of storage elsewhere, as QEMU writes them (qapi/block-core.json): rbd, http and https. */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import type { HttpNodeOptions, RbdNodeOptions } from '../../block/node.js';
import { choice, compact, type Scalars, struct } from '../../qmp/qapi.js';

/** BlockdevOptionsRbd, and the three timeouts, which QEMU leaves to ceph.conf. */
export const rbdShape = (s: Scalars) => ({
  driver: z.literal('rbd'),
  pool: s.str,
  namespace: s.str.optional(),
  image: s.str,
  conf: s.str.optional(),
  snapshot: s.str.optional(),
  encrypt: z.unknown().optional(),
  user: s.str.optional(),
  'auth-client-required': z.array(choice('cephx', 'none')).optional(),
  'key-secret': s.str.optional(),
  server: z.array(struct({ host: s.str, port: s.str })).optional(),
  'mount-timeout': s.uint32.optional(),
  'mon-timeout': s.uint32.optional(),
  'osd-timeout': s.uint32.optional(),
});

type RbdOptions = Partial<z.output<z.ZodObject<ReturnType<typeof rbdShape>>>> & {
  readonly pool: string;
  readonly image: string;
};

/** The driver's own part of the options. Throws NOT_SUPPORTED for encryption. */
export function toRbdOptions(options: RbdOptions): Omit<RbdNodeOptions, 'nodeName'> {
  if (options.encrypt !== undefined) {
    throw new VduseError('NOT_SUPPORTED', "Parameter 'encrypt' is not supported: RBD's own encryption", {
      hint: 'Encrypt in the guest (LUKS), or let the OSDs encrypt their disks.',
    });
  }
  return {
    driver: 'rbd',
    pool: options.pool,
    image: options.image,
    ...compact({
      namespace: options.namespace,
      conf: options.conf,
      snapshot: options.snapshot,
      user: options.user,
      authClientRequired: options['auth-client-required'],
      keySecret: options['key-secret'],
      servers: options.server,
      mountTimeout: options['mount-timeout'],
      monitorTimeout: options['mon-timeout'],
      osdTimeout: options['osd-timeout'],
    }),
  };
}

/** BlockdevOptionsCurlHttp. */
const httpMembers = (s: Scalars) => ({
  url: s.str,
  readahead: s.size.optional(),
  timeout: s.uint32.optional(),
  username: s.str.optional(),
  'password-secret': s.str.optional(),
  'proxy-username': s.str.optional(),
  'proxy-password-secret': s.str.optional(),
  cookie: s.str.optional(),
  'cookie-secret': s.str.optional(),
});

export const httpShape = (s: Scalars) => ({ driver: z.literal('http'), ...httpMembers(s) });

/** BlockdevOptionsCurlHttps. */
export const httpsShape = (s: Scalars) => ({
  driver: z.literal('https'),
  ...httpMembers(s),
  sslverify: s.bool.optional(),
});

type HttpOptions = Partial<z.output<z.ZodObject<ReturnType<typeof httpMembers>>>> & {
  readonly driver: 'http' | 'https';
  readonly url: string;
  readonly sslverify?: boolean | undefined;
};

/** The driver's own part of the options. Throws NOT_SUPPORTED for proxies that ask for a name. */
export function toHttpOptions(options: HttpOptions): Omit<HttpNodeOptions, 'nodeName'> {
  for (const name of ['proxy-username', 'proxy-password-secret'] as const) {
    if (options[name] !== undefined) {
      throw new VduseError(
        'NOT_SUPPORTED',
        `Parameter '${name}' is not supported: there are no proxies here`,
      );
    }
  }
  return {
    driver: options.driver,
    url: options.url,
    ...compact({
      readahead: options.readahead,
      timeout: options.timeout,
      username: options.username,
      passwordSecret: options['password-secret'],
      cookie: options.cookie,
      cookieSecret: options['cookie-secret'],
      sslVerify: options.sslverify,
    }),
  };
}

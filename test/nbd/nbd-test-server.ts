/** A server for one test: on a socket of its own, closed when the test is over. */
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { createLogger, type Logger } from '../../src/base/log.js';
import type { NbdExport } from '../../src/nbd/nbd-export.js';
import type { NbdClientLimits } from '../../src/nbd/nbd-limits.js';
import { type NbdAddress, NbdServer } from '../../src/nbd/nbd-server.js';
import type { NbdTls } from '../../src/nbd/tls-entrance.js';
import { type GoOptions, RawClient } from './raw-client.js';

let count = 0;

export interface TestServer {
  readonly server: NbdServer;
  readonly address: NbdAddress & { readonly type: 'unix' };
  /** For programs: the export's URI. */
  uri(name?: string): string;
  open(options?: GoOptions): Promise<RawClient>;
  connect(): Promise<RawClient>;
}

/** `target` becomes the export with the empty name. */
export async function startServer(
  t: TestContext,
  dir: string,
  options: { target?: NbdExport; limits?: Partial<NbdClientLimits>; logger?: Logger; tls?: NbdTls } = {},
): Promise<TestServer> {
  const { target, ...rest } = options;
  count += 1;
  const address = { type: 'unix', path: join(dir, `nbd-${count}.sock`) } as const;
  const server = new NbdServer({ logger: createLogger({ level: 'silent' }), ...rest });
  if (target !== undefined) {
    server.addExport({ name: '', target });
  }
  await server.listen(address);
  const clients: RawClient[] = [];
  t.after(async () => {
    for (const client of clients) {
      client.close();
    }
    await server.close();
  });
  const keep = (client: RawClient): RawClient => {
    clients.push(client);
    return client;
  };
  return {
    server,
    address,
    uri: (name = '') => `nbd+unix:///${encodeURIComponent(name)}?socket=${address.path}`,
    open: async (how) => keep(await RawClient.open(address, how)),
    connect: async () => keep(await RawClient.connect(address)),
  };
}

/** Serves the daemon's figures to Prometheus: GET /metrics, on a socket for this user or on the loopback interface. */
import { createServer, type Server } from 'node:http';
import { errorMessage, VduseError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import { listenAt, type SocketAddress } from '../qmp/socket-address.js';
import { formatMetrics, type MetricsSource, metricsContentType } from './prometheus.js';

const connectionsMax = 16;
const requestTimeoutMs = 10_000;
const headerBytesMax = 8 << 10;

export class MetricsServer {
  readonly #server: Server;

  private constructor(source: MetricsSource) {
    this.#server = createServer(
      { maxHeaderSize: headerBytesMax, requestTimeout: requestTimeoutMs, headersTimeout: requestTimeoutMs },
      (request, response) => {
        const path = request.url?.split('?')[0];
        request.resume();
        if (path !== '/metrics') {
          response.writeHead(404).end('There is only /metrics.\n');
        } else if (request.method !== 'GET' && request.method !== 'HEAD') {
          response.writeHead(405, { allow: 'GET, HEAD' }).end();
        } else {
          // From now on there is somebody who wants to know how long requests take.
          for (const { counters } of source.exports) {
            if (counters !== undefined) {
              counters.timing = true;
            }
          }
          response.writeHead(200, { 'content-type': metricsContentType }).end(formatMetrics(source));
        }
      },
    );
    this.#server.maxConnections = connectionsMax;
  }

  /** Throws what listening throws. */
  static async start(options: {
    readonly address: SocketAddress;
    readonly source: MetricsSource;
    readonly logger: Logger;
  }): Promise<MetricsServer> {
    const metrics = new MetricsServer(options.source);
    await listenAt(metrics.#server, options.address);
    // Without this a lack of descriptors for one more client would end the process.
    metrics.#server.on('error', (error) => options.logger.warn(`metrics: ${errorMessage(error)}`));
    return metrics;
  }

  /** The port, where it is one. */
  get port(): number {
    const address = this.#server.address();
    if (typeof address !== 'object' || address === null) {
      throw new VduseError('NOT_SUPPORTED', 'the metrics server has no port');
    }
    return address.port;
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((report) => this.#server.close(() => report()));
    this.#server.closeAllConnections();
    await closed;
  }
}

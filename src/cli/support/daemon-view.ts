/** What a daemon's monitor tells of its nodes, exports and jobs. */
import { isJsonObject, type JsonObject, type JsonValue } from '../../qmp/json-value.js';
import type { QmpClient } from './qmp-client.js';

export interface NodeView {
  readonly nodeName: string;
  readonly driver: string;
  readonly filename: string;
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
}

export interface ExportView {
  readonly id: string;
  readonly type: string;
  readonly nodeName: string;
  readonly shuttingDown: boolean;
}

export interface JobView {
  readonly id: string;
  readonly status: string;
  /** Bytes. */
  readonly current: number;
  readonly total: number;
  readonly error: string | undefined;
}

export async function queryNodes(client: QmpClient): Promise<NodeView[]> {
  return objects(await client.execute('query-named-block-nodes')).map((node) => {
    const image = isJsonObject(node['image']) ? node['image'] : {};
    return {
      nodeName: String(node['node-name']),
      driver: String(node['drv']),
      filename: String(image['filename'] ?? node['file']),
      size: Number(image['virtual-size']),
      readOnly: node['ro'] === true,
    };
  });
}

export async function queryExports(client: QmpClient): Promise<ExportView[]> {
  return objects(await client.execute('query-block-exports')).map((one) => ({
    id: String(one['id']),
    type: String(one['type']),
    nodeName: String(one['node-name']),
    shuttingDown: one['shutting-down'] === true,
  }));
}

/** Undefined when there is no such job any more. */
export async function queryJob(client: QmpClient, id: string): Promise<JobView | undefined> {
  const job = objects(await client.execute('query-jobs')).find((one) => one['id'] === id);
  return job === undefined
    ? undefined
    : {
        id,
        status: String(job['status']),
        current: Number(job['current-progress']),
        total: Number(job['total-progress']),
        error: job['error'] === undefined ? undefined : String(job['error']),
      };
}

function objects(answer: JsonValue): JsonObject[] {
  return Array.isArray(answer) ? answer.filter(isJsonObject) : [];
}

/** What a NODE argument stands for as blockdev-add has it, for a daemon that may run in another directory. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileNodeOptions } from '../../daemon/export-disk.js';
import { filenameOptions } from '../../daemon/options/filename.js';
import { isJsonObject, type JsonObject } from '../../qmp/json-value.js';
import { checked } from './command.js';
import { checkImageName, experimentNode } from './image-source.js';
import { withoutSecrets } from './without-secrets.js';

/** Without a node name, unless the argument has one. Throws UsageError. */
export function blockdevArgument(text: string): JsonObject {
  checkImageName(text);
  const experiment = experimentNode(text, '');
  if (experiment !== undefined) {
    return { driver: experiment.driver, size: experiment.size };
  }
  const options = existsSync(text) ? undefined : checked(withoutSecrets(text), () => filenameOptions(text));
  if (options === undefined) {
    const { driver, filename } = fileNodeOptions(resolve(text), '');
    return { driver, filename, discard: 'unmap' };
  }
  return withAbsolutePaths({ discard: 'unmap', ...(options as unknown as JsonObject) });
}

function withAbsolutePaths(options: JsonObject): JsonObject {
  const { driver, filename, file } = options;
  const isFile = driver === 'file' || driver === 'host_device';
  return {
    ...options,
    ...(isFile ? { filename: resolve(String(filename)) } : {}),
    ...(isJsonObject(file) ? { file: withAbsolutePaths(file) } : {}),
  };
}

/** Authorization objects as --object and object-add write them (QEMU: qapi/authz.json). */
import { readFileSync, statSync } from 'node:fs';
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import { systemReason } from '../../base/socket-errors.js';
import { checkOptions, choice, jsonScalars, type Scalars, struct } from '../../qmp/qapi.js';
import { type AccessList, isAllowed } from '../access-list.js';

/** Bytes of a file of rules. */
const listFileBytesMax = 1 << 20;

const rule = (s: Scalars) =>
  struct({
    match: s.str,
    policy: choice('deny', 'allow'),
    format: choice('exact', 'glob').optional(),
  });

const rulesError = () => "Invalid parameter type for 'rules', expected: array";

const listMembers = (s: Scalars) => ({
  policy: choice('deny', 'allow').optional(),
  rules: z.array(rule(s), { error: rulesError }).optional(),
});

export const authzObjectOptions = (s: Scalars) =>
  [
    struct({ 'qom-type': z.literal('authz-simple'), id: s.str, identity: s.str }),
    struct({ 'qom-type': z.literal('authz-list'), id: s.str, ...listMembers(s) }),
    struct({
      'qom-type': z.literal('authz-list-file'),
      id: s.str,
      filename: s.str,
      refresh: s.bool.optional(),
    }),
    struct({ 'qom-type': z.literal('authz-pam'), id: s.str, service: s.str }),
  ] as const;

export type AuthzObjectOptions = z.output<ReturnType<typeof authzObjectOptions>[number]>;

export interface Authorization {
  readonly options: AuthzObjectOptions;
  /** Throws when it can't be told. */
  readonly isAllowed: (name: string) => boolean;
}

/** Throws INVALID_ARGUMENT, SYSTEM_CALL for a file that can't be read, or NOT_SUPPORTED. */
export function toAuthorization(options: AuthzObjectOptions): Authorization {
  switch (options['qom-type']) {
    case 'authz-simple':
      return { options, isAllowed: (name) => name === options.identity };
    case 'authz-list': {
      const list = toAccessList(options);
      return { options, isAllowed: (name) => isAllowed(list, name) };
    }
    case 'authz-list-file':
      return { options, isAllowed: fileAuthorization(options.filename, options.refresh ?? true) };
    case 'authz-pam':
      throw new VduseError('NOT_SUPPORTED', 'invalid object type: authz-pam', {
        hint: 'PAM is not asked here: use authz-list or authz-list-file',
      });
  }
}

/** With `refresh` the file is read for each client: nobody comes in by rules that were taken back. */
function fileAuthorization(filename: string, refresh: boolean): Authorization['isAllowed'] {
  const first = readList(filename);
  return (name) => isAllowed(refresh ? readList(filename) : first, name);
}

const listFile = struct(listMembers(jsonScalars));

function toAccessList({ policy, rules = [] }: z.output<typeof listFile>): AccessList {
  return {
    policy: policy ?? 'deny',
    rules: rules.map(({ format = 'exact', ...more }) => ({ ...more, format })),
  };
}

function readList(filename: string): AccessList {
  let content: unknown;
  try {
    const { size } = statSync(filename);
    if (size > listFileBytesMax) {
      throw new VduseError('INVALID_ARGUMENT', `it is longer than ${listFileBytesMax} bytes`);
    }
    content = JSON.parse(readFileSync(filename, 'utf8'));
  } catch (error) {
    throw new VduseError('SYSTEM_CALL', `Unable to read '${filename}': ${systemReason(error)}`, {
      cause: error,
    });
  }
  if (typeof content !== 'object' || content === null || Array.isArray(content)) {
    throw new VduseError('INVALID_ARGUMENT', `File '${filename}' must contain a JSON object`);
  }
  return toAccessList(checkOptions(listFile, content));
}

/** The command line of the storage daemon: qemu-storage-daemon's options, in their order, and a few of ours. */
import { Command, CommanderError, Option } from 'commander';
import { VduseError } from '../../base/errors.js';
import { blockdevOptions, toBlockNodeOptions } from '../../daemon/options/blockdev-options.js';
import {
  chardevFlags,
  chardevOptions,
  monitorOptions,
  toChardevRequest,
  toMonitorRequest,
} from '../../daemon/options/chardev-options.js';
import { exportOptions, toExportRequest } from '../../daemon/options/export-options.js';
import { metricsOptions, toMetricsAddress } from '../../daemon/options/metrics-options.js';
import { nbdServerOptions, toNbdServerRequest } from '../../daemon/options/nbd-options.js';
import { objectOptions, toUserObject } from '../../daemon/options/object-options.js';
import type { StorageDaemon } from '../../daemon/storage-daemon.js';
import { packageVersion, qemuInterfaceVersion } from '../../daemon/version.js';
import type { KeyvalSyntax } from '../../qmp/keyval.js';
import { nearest } from '../../qmp/nearest.js';
import type { Declaration } from '../../qmp/qapi.js';
import { withoutHidden, withoutSecrets } from '../support/without-secrets.js';
import { type HelpTopic, helpOn, helpText } from './help.js';
import { isHelpRequest, parseOptionArgument } from './option-argument.js';

export const programName = 'vduse-storage-daemon';

/** One option that sets something up, ready to be applied. */
interface StartupStep {
  /** The option as it was given, for the error when it fails. */
  readonly given: string;
  apply(daemon: StorageDaemon): Promise<unknown>;
}

export interface StartupPlan {
  readonly steps: readonly StartupStep[];
  readonly daemonize: boolean;
  readonly pidFile: string | undefined;
  readonly logFormat: 'text' | 'json';
  readonly logLevel: string;
  /** Tracing was asked for, which there is none of. */
  readonly trace: boolean;
}

export type CommandLine =
  | { readonly print: string; readonly plan?: undefined }
  | { readonly print?: undefined; readonly plan: StartupPlan };

interface StepKind {
  readonly flags: string;
  readonly syntax: KeyvalSyntax;
  /** Checks the argument; what it returns applies it. */
  prepare(text: string, syntax: KeyvalSyntax): StartupStep['apply'];
}

/** An option that is checked by `declaration` and then done by `apply`. */
function stepKind<T, R>(kind: {
  flags: string;
  syntax: KeyvalSyntax;
  declaration: Declaration<T>;
  convert: (options: T) => R;
  apply: (daemon: StorageDaemon, request: R) => Promise<unknown>;
}): StepKind {
  return {
    flags: kind.flags,
    syntax: kind.syntax,
    prepare: (text, syntax) => {
      const request = kind.convert(parseOptionArgument(text, kind.declaration, syntax));
      return (daemon) => kind.apply(daemon, request);
    },
  };
}

const stepKinds: Record<HelpTopic, StepKind> = {
  blockdev: stepKind({
    flags: '--blockdev <options>',
    syntax: { impliedKey: 'driver' },
    declaration: blockdevOptions,
    convert: toBlockNodeOptions,
    apply: (daemon, options) => daemon.addNode(options),
  }),
  chardev: stepKind({
    flags: '--chardev <options>',
    syntax: { impliedKey: 'backend', flags: chardevFlags },
    declaration: chardevOptions,
    convert: toChardevRequest,
    apply: (daemon, request) => daemon.addChardev(request),
  }),
  export: stepKind({
    flags: '--export <options>',
    syntax: { impliedKey: 'type' },
    declaration: exportOptions,
    convert: toExportRequest,
    apply: (daemon, request) => daemon.addExport(request),
  }),
  monitor: stepKind({
    flags: '--monitor <options>',
    syntax: { impliedKey: 'chardev', flags: ['pretty'] },
    declaration: monitorOptions,
    convert: toMonitorRequest,
    apply: (daemon, request) => daemon.addMonitor(request),
  }),
  'nbd-server': stepKind({
    flags: '--nbd-server <options>',
    syntax: {},
    declaration: nbdServerOptions,
    convert: toNbdServerRequest,
    apply: (daemon, request) => daemon.startNbdServer(request),
  }),
  metrics: stepKind({
    flags: '--metrics <options>',
    syntax: {},
    declaration: metricsOptions,
    convert: toMetricsAddress,
    apply: (daemon, address) => daemon.startMetrics(address),
  }),
  object: stepKind({
    flags: '--object <options>',
    syntax: { impliedKey: 'qom-type' },
    declaration: objectOptions,
    convert: toUserObject,
    apply: (daemon, object) => daemon.addObject(object),
  }),
};

/** Ends the parsing with something to print. */
class PrintRequest extends Error {}

/** Throws INVALID_ARGUMENT or NOT_SUPPORTED, with the option in the message. Nothing has been set up then. */
export function parseCommandLine(args: readonly string[]): CommandLine {
  const steps: StartupStep[] = [];
  const command = createCommand(steps);
  try {
    command.parse(args, { from: 'user' });
  } catch (error) {
    if (error instanceof PrintRequest) {
      return { print: error.message };
    }
    throw error instanceof CommanderError ? usageError(error, command) : error;
  }
  if (command.args.length > 0) {
    throw new VduseError('INVALID_ARGUMENT', `${command.args[0]}: Unexpected argument`, {
      hint: `Images are opened by --blockdev and served by --export: see ${programName} --help.`,
    });
  }
  const given = command.opts<{
    daemonize?: true;
    pidfile?: string;
    logFormat: 'text' | 'json';
    logLevel: string;
    trace?: string;
  }>();
  return {
    plan: {
      steps,
      daemonize: given.daemonize === true,
      pidFile: given.pidfile,
      logFormat: given.logFormat,
      logLevel: given.logLevel,
      trace: given.trace !== undefined,
    },
  };
}

function createCommand(steps: StartupStep[]): Command {
  const command = new Command(programName)
    .exitOverride()
    .configureOutput({ writeErr: () => undefined })
    .helpOption(false)
    .allowExcessArguments()
    .option('-h, --help')
    .option('-V, --version')
    .on('option:help', () => print(helpText(programName)))
    .on('option:version', () => print(versionText()));
  for (const [name, kind] of Object.entries(stepKinds)) {
    command.option(kind.flags, '', (text) => void steps.push(prepareStep(name as HelpTopic, kind, text)));
  }
  return command
    .option('--daemonize')
    .option('--pidfile <path>')
    .option('-T, --trace <options>')
    .addOption(new Option('--log-format <format>').choices(['text', 'json']).default('text'))
    .addOption(
      new Option('--log-level <level>')
        .choices(['trace', 'debug', 'info', 'warn', 'error', 'silent'])
        .default('info'),
    );
}

function print(text: string): never {
  throw new PrintRequest(text);
}

function versionText(): string {
  return `${programName} version ${packageVersion} (follows qemu-storage-daemon ${qemuInterfaceVersion})\n`;
}

function prepareStep(name: HelpTopic, kind: StepKind, text: string): StartupStep {
  const shown = withoutSecrets(text);
  const given = `--${name} ${shown}`;
  try {
    if (isHelpRequest(text, kind.syntax)) {
      print(helpOn(name));
    }
    return { given, apply: kind.prepare(text, kind.syntax) };
  } catch (error) {
    throw error instanceof VduseError ? inOption(given, withoutHidden(error, text, shown)) : error;
  }
}

/** The same error, saying which option it is about. */
export function inOption(given: string, error: VduseError): VduseError {
  return new VduseError(error.code, `${given}: ${error.message}`, { cause: error, hint: error.hint });
}

function usageError(error: CommanderError, command: Command): VduseError {
  const message = error.message.replace(/^error: /, '').split('\n')[0];
  const unknown = /^unknown option '(--[^'=]*)/.exec(message)?.[1];
  if (unknown !== undefined) {
    const near = nearest(
      unknown,
      command.options.flatMap((option) => option.long ?? []),
    );
    return new VduseError('INVALID_ARGUMENT', `unrecognized option '${unknown}'`, {
      hint: near === undefined ? `see ${programName} --help` : `did you mean '${near}'?`,
    });
  }
  const incomplete = /^option '.*?(--[a-z-]+) <.*>' argument missing$/.exec(message)?.[1];
  return new VduseError(
    'INVALID_ARGUMENT',
    incomplete === undefined ? message : `option '${incomplete}' requires an argument`,
  );
}

/** The help text, in pieces, so that `--export help` shows only what belongs to it. */

const optionHelp = {
  blockdev: `\
  --blockdev [driver=]file|host_device,node-name=<N>,filename=<path>
             [,aio=threads|native|io_uring][,locking=auto|on|off]
             [,auto-read-only=on|off][,<common options>]
  --blockdev [driver=]null-co,node-name=<N>[,size=<bytes>]
             [,read-zeroes=on|off][,<common options>]
  --blockdev [driver=]memory,node-name=<N>,size=<bytes>[,<common options>]
  --blockdev [driver=]nbd,node-name=<N>,server.type=unix,server.path=<path>
             [,export=<name>][,tls-creds=<id>][,tls-hostname=<name>]
             [,reconnect-delay=<s>][,open-timeout=<s>][,<common options>]
  --blockdev [driver=]nbd,node-name=<N>,server.type=inet,server.host=<host>,
             server.port=<port>[,...]
             server.type=fd takes a socket, server.str=<file descriptor>
  --blockdev [driver=]rbd,node-name=<N>,pool=<pool>,image=<image>
             [,namespace=<name>][,snapshot=<name>][,conf=<path>][,user=<name>]
             [,key-secret=<id>][,server.<n>.host=<host>,server.<n>.port=<port>]
             [,mount-timeout=<s>][,mon-timeout=<s>][,osd-timeout=<s>]
             [,<common options>]
  --blockdev [driver=]http|https,node-name=<N>,url=<URL>,read-only=on
             [,username=<name>,password-secret=<id>][,cookie-secret=<id>]
             [,readahead=<bytes>][,timeout=<s>][,sslverify=on|off]
             [,<common options>]
  --blockdev [driver=]raw,node-name=<N>,file=<node>[,offset=<bytes>]
             [,size=<bytes>][,<common options>]
  --blockdev [driver=]throttle,node-name=<N>,file=<node>,throttle-group=<id>
             [,<common options>]
  --blockdev [driver=]fault,node-name=<N>,file=<node>[,seed=<n>]
             [,rules.<n>.effect=error|delay|late-error|disconnect,...]
                         a filter that fails by rule, for tests
             common options: [,read-only=on|off][,discard=ignore|unmap]
             [,detect-zeroes=off|on|unmap][,cache.direct=on|off]
             [,cache.no-flush=on|off]
                         open a block node
`,
  chardev: `\
  --chardev [backend=]socket,id=<id>,path=<path>[,server=on|off][,wait=on|off]
  --chardev [backend=]socket,id=<id>,host=<loopback>,port=<port>
            [,server=on|off][,wait=on|off]
  --chardev [backend=]socket,id=<id>,fd=<file descriptor>[,server=on|off]
            a server waits for its first client unless wait=off; one that
            connects (server=off) may have reconnect=<s>; path= with
            abstract=on is an abstract name
                         make a socket for a monitor
  --chardev [backend=]null,id=<id>
                         make a device to which nobody connects
`,
  export: `\
  --export [type=]vduse-blk,id=<id>,node-name=<N>,name=<device name>
           [,writable=on|off][,num-queues=<count>][,queue-size=<size>]
           [,logical-block-size=<bytes>][,serial=<serial number>]
           [,iothread=<id>][,poll-us=<n>][,irq-affinity=<list>]
           [,attach=virtio|vhost]
                         serve the block node as the VDUSE device
                         /dev/vduse/<device name>; vduse-id=<number> in place
                         of name= means the number as the name
  --export [type=]nbd,id=<id>,node-name=<N>[,name=<export name>]
           [,writable=on|off][,description=<text>]
                         serve the block node through the NBD server
  --export [type=]vhost-user-blk,id=<id>,node-name=<N>,
           addr.type=unix,addr.path=<socket path>[,server=on|off]
           [,writable=on|off][,num-queues=<count>]
           [,logical-block-size=<bytes>][,serial=<serial number>]
           [,iothread=<id>][,poll-us=<n>]
  --export [type=]vhost-user-blk,id=<id>,node-name=<N>,
           addr.type=fd,addr.str=<file descriptor>[,...]
                         serve the block node to a virtual machine over
                         vhost-user; with server=off connect to its socket
`,
  monitor: `\
  --monitor [chardev=]<id>[,mode=control][,pretty=on|off]
                         speak QMP on a character device
`,
  'nbd-server': `\
  --nbd-server addr.type=unix,addr.path=<path>[,max-connections=<count>]
               [,tls-creds=<id>][,tls-authz=<id>]
  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>
               [,max-connections=<count>][,tls-creds=<id>][,tls-authz=<id>]
  --nbd-server addr.type=fd,addr.str=<file descriptor>[,...]
                         serve exports of the type nbd; with tls-creds over TLS
                         only, without them on loopback addresses only
`,
  metrics: `\
  --metrics addr.type=unix,addr.path=<path>
  --metrics addr.type=inet,addr.host=<loopback>,addr.port=<port>
                         serve figures to Prometheus under /metrics
`,
  object: `\
  --object [qom-type=]iothread,id=<id>[,poll-max-ns=<n>][,cpu-affinity=<list>]
                         name a thread for the queues of exports
  --object [qom-type=]secret,id=<id>,data=<text>|file=<path>
           [,format=raw|base64]
                         store a secret
  --object throttle-group,id=<id>[,limits.iops-total=<n>]
           [,limits.bps-total=<n>][,limits.<other>=<n>]
                         limits that throttle nodes share
  --object tls-creds-x509,id=<id>,dir=<path>[,endpoint=client|server]
           [,verify-peer=on|off][,passwordid=<id>]
  --object tls-creds-psk,id=<id>,dir=<path>[,endpoint=client|server]
           [,username=<name>]
                         read TLS credentials
  --object authz-simple,id=<id>,identity=<name>
  --object authz-list,id=<id>[,policy=allow|deny][,rules.<n>.match=<name>,
           rules.<n>.policy=allow|deny[,rules.<n>.format=exact|glob]]
  --object authz-list-file,id=<id>,filename=<path>[,refresh=on|off]
                         say which names of certificates may come
`,
} as const;

export type HelpTopic = keyof typeof optionHelp;

export function helpOn(topic: HelpTopic): string {
  return optionHelp[topic];
}

export function helpText(program: string): string {
  return `\
Usage: ${program} [options]
Storage daemon: block devices in user space, controlled like qemu-storage-daemon

Options that take KEY=VALUE,... also take JSON, such as
--blockdev '{"driver":"null-co","node-name":"disk0"}'. They take effect in the
order in which they are given.

  -h, --help             show this help
  -V, --version          show the version

${optionHelp.blockdev}
${optionHelp.chardev}
${optionHelp.monitor}
${optionHelp['nbd-server']}
${optionHelp.object}
${optionHelp.export}
${optionHelp.metrics}
  --daemonize            run in the background; returns when the daemon is ready
  --pidfile <path>       write the process id to a file after start-up
  --log-format text|json how log lines on standard error look (default: text)
  --log-level <level>    trace, debug, info (the default), warn, error, silent
  -T, --trace <options>  accepted, has no effect
`;
}

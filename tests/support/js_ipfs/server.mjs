// js-ipfs with its RPC on a free port of loopback, alone: it listens for no peers and looks for none.
//
//     node server.mjs REPOSITORY
//
// Prints one line of JSON, {"api", "id"}, once it answers; ends with its standard input.

if (!Promise.withResolvers) { // Node before 22
  Promise.withResolvers = () => {
    const made = {}
    made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }))
    return made
  }
}

const { create } = await import('ipfs-core')
const { HttpApi } = await import('ipfs-http-server')

const ipfs = await create({
  repo: process.argv[2],
  silent: true,
  preload: { enabled: false },
  init: { algorithm: 'Ed25519', emptyRepo: true },
  config: {
    Addresses: { Swarm: [], API: '/ip4/127.0.0.1/tcp/0', Gateway: '', RPC: '', Delegates: [] },
    Bootstrap: [],
    Discovery: { MDNS: { Enabled: false }, webRTCStar: { Enabled: false } },
    Routing: { Type: 'none' },
  },
})
const server = new HttpApi(ipfs)
await server.start()
console.log(JSON.stringify({ api: String(server.apiAddr), id: String((await ipfs.id()).id) }))
process.stdin.on('end', () => process.exit(0)).resume()

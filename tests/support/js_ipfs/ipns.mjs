// IPNS records by the npm package ipns: one JSON request a line on standard input, one JSON answer a line.
//
//     {"check": NAME, "record": BASE64}                                    -> {"value", "sequence", "validity", "ttl"} or {"error"}
//     {"make": SEED, "value", "sequence", "lifetime", "ttl", "v1"}         -> {"name", "record"}
//     {"select": [BASE64, ...], "name": NAME}                              -> {"best": index}
//
// SEED is an Ed25519 key's in base64, signing is OpenSSL's. Times in milliseconds, ttl in nanoseconds (as text, as is the sequence number).

if (!Promise.withResolvers) { // Node before 22
  Promise.withResolvers = () => {
    const made = {}
    made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }))
    return made
  }
}

const crypto = await import('node:crypto')
const { createInterface } = await import('node:readline')
const { CID } = await import('multiformats/cid')
const { base36 } = await import('multiformats/bases/base36')
const { identity } = await import('multiformats/hashes/identity')
const ipns = await import('ipns-of-today')
const { ipnsValidator } = await import('ipns-of-today/validator')
const { ipnsSelector } = await import('ipns-of-today/selector')

const LIBP2P_KEY = 0x72
const PKCS8 = Buffer.from('302e020100300506032b657004220420', 'hex')
const PUBLIC_KEY = Buffer.from('08011220', 'hex')

const routingKey = name => ipns.multihashToIPNSRoutingKey(CID.parse(name, base36.decoder).multihash)
const bytes = text => new Uint8Array(Buffer.from(text, 'base64'))

async function check ({ check: name, record }) {
  await ipnsValidator(routingKey(name), bytes(record))
  const { value, sequence, validity, ttl } = ipns.unmarshalIPNSRecord(bytes(record))
  return { value, sequence: String(sequence), validity, ttl: String(ttl) }
}

async function make ({ make: seed, value, sequence, lifetime, ttl, v1 }) {
  const key = crypto.createPrivateKey({ key: Buffer.concat([PKCS8, bytes(seed)]), format: 'der', type: 'pkcs8' })
  const raw = crypto.createPublicKey(key).export({ format: 'der', type: 'spki' }).subarray(-32)
  const signer = { type: 'Ed25519', sign: data => crypto.sign(null, data, key) }
  const made = await ipns.createIPNSRecord(signer, value, BigInt(sequence), lifetime, { v1Compatible: v1, ttlNs: BigInt(ttl) })
  const name = CID.createV1(LIBP2P_KEY, identity.digest(Buffer.concat([PUBLIC_KEY, raw]))).toString(base36)
  return { name, record: Buffer.from(ipns.marshalIPNSRecord(made)).toString('base64') }
}

const select = ({ select: records, name }) => ({ best: ipnsSelector(routingKey(name), records.map(bytes)) })

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line)
  try {
    const act = 'check' in request ? check : 'make' in request ? make : select
    console.log(JSON.stringify(await act(request)))
  } catch (error) {
    console.log(JSON.stringify({ error: `${error.name}: ${error.message}` }))
  }
}

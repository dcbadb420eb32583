import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { FaultProxy } from './faultProxy.js'

/** The gateway, which has the demo in it. */
export function binary(): string {
  const file = process.env['ONCEWARD_BIN'] ?? fileURLToPath(new URL('../../../../target/debug/onceward', import.meta.url))
  if (!existsSync(file)) throw new Error(`${file} is missing: run \`cargo build -p onceward-gateway\``)
  return file
}

/** The real orders service and the real gateway, each a process, with a network before and behind the gateway. */
export class Shop {
  /** Between the client and the gateway. */
  front!: FaultProxy
  /** Between the gateway and the service. */
  back!: FaultProxy
  readonly #folder = mkdtempSync(join(tmpdir(), 'onceward-ts-'))
  #orders!: ChildProcess
  #gateway!: ChildProcess
  #ordersPort = 0
  #gatewayPort = 0

  static async open(settings = ''): Promise<Shop> {
    const shop = new Shop()
    shop.#ordersPort = await freePort()
    shop.#orders = await start(['demo-orders', '--listen', `127.0.0.1:${shop.#ordersPort}`, '--db', join(shop.#folder, 'orders.db'), '--relay', ''])
    shop.back = await new FaultProxy(shop.#ordersPort).open()
    shop.#gatewayPort = await freePort()
    const adminPort = await freePort()
    writeFileSync(join(shop.#folder, 'onceward.toml'), `
listen = "127.0.0.1:${shop.#gatewayPort}"
upstream = "${shop.back.url}"
store = "embedded:${join(shop.#folder, 'keys')}"
[admin]
listen = "127.0.0.1:${adminPort}"
[policy]
principal = []
${settings}`)
    await shop.startGateway()
    shop.front = await new FaultProxy(shop.#gatewayPort).open()
    return shop
  }

  get url(): string {
    return this.front.url
  }
  async startGateway(): Promise<void> {
    this.#gateway = await start(['demo-gateway', '--config', join(this.#folder, 'onceward.toml')])
  }
  async killGateway(): Promise<void> {
    await end(this.#gateway)
  }
  /** How many orders stand in the database. */
  async total(): Promise<number> {
    const response = await fetch(`http://127.0.0.1:${this.#ordersPort}/orders?limit=1`)
    return Number(response.headers.get('orders-total'))
  }
  /** The service without the gateway: it honours no keys. */
  async plain(): Promise<FaultProxy> {
    return new FaultProxy(this.#ordersPort).open()
  }
  async close(): Promise<void> {
    await Promise.all([this.front.close(), this.back.close(), end(this.#gateway), end(this.#orders)])
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

/** Starts a program and waits until it says that it listens. */
async function start(args: string[]): Promise<ChildProcess> {
  // Both end when their end of the pipe closes: whatever becomes of the tests, nothing is left behind.
  const child = spawn(binary(), args, { stdio: ['pipe', 'pipe', 'pipe'] })
  let said = ''
  await new Promise<void>((resolve, reject) => {
    const hear = (chunk: Buffer) => {
      said += chunk.toString()
      if (/listening on/.test(said)) resolve()
    }
    child.stdout.on('data', hear)
    child.stderr.on('data', hear)
    child.once('exit', (code) => reject(new Error(`${args[0]} ended (${code}): ${said}`)))
  })
  return child
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise((resolve) => child.once('exit', resolve))
  child.kill('SIGKILL')
  await ended
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return port
}

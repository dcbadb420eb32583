import { spawn, type ChildProcess } from 'node:child_process'
import { FaultProxy } from '../../../../../packages/onceward/test/support/faultProxy.js'
import { binary } from '../../../../../packages/onceward/test/support/shop.js'

/** `onceward demo` as a person starts it, and a door before its network, which holds answers until a test lets them go. */
export class Demo {
  readonly #child: ChildProcess
  readonly door: FaultProxy
  /** Where the page is, by the door. */
  readonly url: string
  readonly #orders: string
  /** What the demo said since it was there. */
  #said: () => string

  private constructor(child: ChildProcess, door: FaultProxy, orders: string, said: () => string) {
    ;[this.#child, this.door, this.url, this.#orders, this.#said] = [child, door, door.url, orders, said]
  }

  static async start(): Promise<Demo> {
    const child = spawn(binary(), ['demo'], { stdio: ['ignore', 'pipe', 'pipe'] })
    let said = ''
    await new Promise<void>((resolve, reject) => {
      const hear = (chunk: Buffer) => {
        said += chunk.toString()
        if (said.includes('Ctrl-C')) resolve()
      }
      child.stdout.on('data', hear)
      child.stderr.on('data', hear)
      child.once('exit', (code) => reject(new Error(`the demo ended (${code}): ${said}`)))
    })
    const at = (name: string) => new URL(new RegExp(`^ +${name} +(http\\S+)`, 'm').exec(said)![1]!)
    const door = await new FaultProxy(Number(at('network').port)).open()
    return new Demo(child, door, at('orders').origin, () => said)
  }

  /** How many orders the database has, as the service says. */
  async orders(client: 'onceward' | 'naive'): Promise<number> {
    const rows = (await (await fetch(`${this.#orders}/orders?limit=10000`)).json()) as { item: string }[]
    return rows.filter(({ item }) => item.endsWith(client)).length
  }
  /** How often the gateway was killed and came back. */
  get restarts(): number {
    return this.#said().split('the gateway is back').length - 1
  }
  async close(): Promise<void> {
    await this.door.close()
    if (this.#child.exitCode !== null) return
    const ended = new Promise((resolve) => this.#child.once('exit', resolve))
    this.#child.kill('SIGTERM')
    await ended
  }
}

import { createServer, request, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

/**
 * A network between two real programs: it passes requests on, and on demand loses, holds or refuses. It is invisible: the
 * `Host` goes through as it came.
 */
export class FaultProxy {
  /** Number of responses to POSTs still to be dropped: read whole, and then the connection is cut. */
  dropResponses = 0
  /** Number of responses to POSTs still to stall in their middle: the connection stays open. */
  stallNext = 0
  /** Number of POSTs still to be refused: cut before they were forwarded. */
  refuse = 0
  /** Resolves before the response to a POST goes on. */
  hold: Promise<unknown> | undefined
  /** Resolves before a POST goes on to where it is going. */
  holdRequest: Promise<unknown> | undefined
  /** Method and path of all that came, in order. */
  readonly seen: { method: string; url: string; headers: IncomingMessage['headers'] }[] = []
  readonly pages = new Map<string, { type: string; body: string }>()
  /** What a service's own CORS layer does: pages of this origin may read, and send these headers. */
  allows: { readonly origin: string; readonly headers: string } | undefined
  readonly #server: Server
  #waiting: { is: () => boolean; go: () => void }[] = []
  target: number

  constructor(target: number) {
    this.target = target
    this.#server = createServer((incoming, outgoing) => void this.#pass(incoming, outgoing))
  }

  /** From here on it is a good one. */
  heal(): void {
    Object.assign(this, { dropResponses: 0, stallNext: 0, refuse: 0, hold: undefined, holdRequest: undefined })
  }
  async open(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve))
    return this
  }
  get port(): number {
    return (this.#server.address() as AddressInfo).port
  }
  get url(): string {
    return `http://127.0.0.1:${this.port}`
  }
  posts(): number {
    return this.seen.filter(({ method }) => method === 'POST').length
  }
  /** Resolves when N POSTs have come, counted from the opening. */
  saw(posts: number): Promise<void> {
    return this.#until(() => this.posts() >= posts)
  }
  #answered = 0
  /** Resolves when N responses to POSTs have arrived here, lost and held ones too. */
  answered(posts: number): Promise<void> {
    return this.#until(() => this.#answered >= posts)
  }
  get answers(): number {
    return this.#answered
  }
  cutAll(): void {
    this.#server.closeAllConnections()
  }
  async close(): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
  }

  #until(is: () => boolean): Promise<void> {
    if (is()) return Promise.resolve()
    return new Promise((go) => this.#waiting.push({ is, go }))
  }
  #tell(): void {
    for (const waiting of this.#waiting.filter(({ is }) => is())) waiting.go()
    this.#waiting = this.#waiting.filter(({ is }) => !is())
  }

  async #pass(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
    const { method = '', url = '', headers } = incoming
    // A browser that loses a connection that it used before sends the request once more by itself, and hides the loss.
    outgoing.shouldKeepAlive = false
    const { allows } = this
    if (allows && headers.origin === allows.origin) outgoing.setHeader('access-control-allow-origin', allows.origin)
    if (allows && headers['access-control-request-method']) {
      this.seen.push({ method, url, headers })
      outgoing.writeHead(204, { 'access-control-allow-methods': 'POST', 'access-control-allow-headers': allows.headers }).end()
      return
    }
    const page = this.pages.get(url.split('?')[0]!)
    if (page) {
      outgoing.writeHead(200, { 'content-type': page.type, 'cache-control': 'no-store' }).end(page.body)
      return
    }
    const chunks: Buffer[] = []
    for await (const chunk of incoming) chunks.push(chunk as Buffer)
    this.seen.push({ method, url, headers })
    this.#tell()
    const isPost = method === 'POST'
    const { hold, holdRequest } = this
    if (isPost && this.refuse > 0) {
      this.refuse -= 1
      outgoing.destroy()
      return
    }
    if (isPost && holdRequest) await holdRequest
    const onward = request({ host: '127.0.0.1', port: this.target, method, path: url, headers, agent: false, setHost: false })
    onward.on('error', () => outgoing.destroy())
    onward.on('response', (answer) => {
      const parts: Buffer[] = []
      answer.on('data', (part: Buffer) => parts.push(part))
      answer.on('error', () => outgoing.destroy())
      answer.on('end', () => {
        if (isPost) this.#answered += 1
        this.#tell()
        if (isPost && this.dropResponses > 0) {
          this.dropResponses -= 1
          outgoing.destroy()
          return
        }
        void (isPost ? (hold ?? Promise.resolve()) : Promise.resolve()).then(() => {
          if (outgoing.destroyed) return
          outgoing.writeHead(answer.statusCode!, answer.statusMessage, answer.rawHeaders.filter((_, i, all) => !/^(transfer-encoding|connection|keep-alive)$/i.test(all[i - (i % 2)]!)))
          const body = Buffer.concat(parts)
          if (isPost && this.stallNext > 0) {
            this.stallNext -= 1
            outgoing.write(body.subarray(0, body.length / 2))
            return
          }
          outgoing.end(body)
        })
      })
    })
    onward.end(Buffer.concat(chunks))
  }
}

/** A promise and what resolves it. */
export function deferred(): { promise: Promise<void>; open: () => void } {
  let open!: () => void
  const promise = new Promise<void>((resolve) => (open = resolve))
  return { promise, open }
}

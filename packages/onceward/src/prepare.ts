/** Makes a request that can be sent any number of times, each time with the very same bytes. */

import { digest, encode } from './digest.js'
import { newKey } from './key.js'
import { fixBoundary } from './multipart.js'

export interface PreparedRequest {
  /** Method, URL, headers and the rest; its body has been read. */
  readonly request: Request
  /** Without fragment. */
  readonly url: string
  readonly origin: string
  readonly body: Uint8Array<ArrayBuffer> | undefined
  readonly contentType: string | undefined
  /** Digest of method, URL without fragment, content type and bytes: equal for the same request after a refresh. */
  readonly digest: string
  /** Serializes a body that cannot be read in the caller's task. The first attempt sends `request` itself. */
  readonly readLater?: (() => Response) | undefined
}

/** `given` is the body of `init`: most kinds can be read at once, without waiting for another task. */
export async function prepare(request: Request, given?: BodyInit | null): Promise<PreparedRequest> {
  const url = request.url.replace(/#.*/, '')
  const { origin } = new URL(url)
  let contentType = request.headers.get('content-type') ?? undefined
  let body: Uint8Array<ArrayBuffer> | undefined
  if (typeof given === 'string' || given instanceof URLSearchParams) body = encode(`${given}`)
  else if (given instanceof ArrayBuffer) body = new Uint8Array(given.slice(0))
  else if (ArrayBuffer.isView(given)) body = new Uint8Array(given.buffer as ArrayBuffer, given.byteOffset, given.byteLength).slice()
  else if (request.keepalive && given) {
    return { request, url, origin, body, contentType, digest: newKey(), readLater: () => new Response(given) }
  } else if (given || request.body !== null) {
    const buffer = await request.arrayBuffer()
    // An empty body is one too: a request whose body was read cannot be sent without another.
    if (request.bodyUsed) body = new Uint8Array(buffer)
    // A browser's own boundary is long; a short one is its author's, and stays as it is.
    const boundary = /^multipart.*boundary="?([^";]{20,})/i.exec(contentType ?? '')?.[1]
    if (body && boundary) contentType = contentType!.replace(boundary, await fixBoundary(body, boundary))
  }
  const head = encode(`${request.method} ${url}\n${contentType}\n`)
  const all = new Uint8Array(head.length + (body?.length ?? 0))
  all.set(head)
  if (body) all.set(body, head.length)
  return { request, url, origin, body, contentType, digest: await digest(all) }
}

/** Makes one attempt of it. */
export function attempt({ request, body, contentType }: PreparedRequest, headers: Record<string, string | undefined>, signal: AbortSignal): Request {
  return new Request(request, { headers: withHeaders(request, { ...headers, 'content-type': contentType }), signal, ...(body && { body: repeatable(body) }) })
}

/** Node detaches bytes that it sends, and cannot send them again after a 307 or 308. React Native makes no blobs of bytes. */
function repeatable(body: Uint8Array<ArrayBuffer>): BodyInit {
  try {
    return globalThis.document ? body : new Blob([body])
  } catch {
    return body
  }
}

export function withHeaders(request: Request, headers: Record<string, string | undefined>): Headers {
  const all = new Headers(request.headers)
  // What the caller prefers stands beside it.
  for (const [name, value] of Object.entries(headers)) if (value !== undefined) all[name === 'prefer' ? 'append' : 'set'](name, value)
  return all
}

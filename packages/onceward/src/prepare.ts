/** A request that can be sent any number of times, each time the very same bytes. */

import { digest } from './digest.js'

export interface Prepared {
  /** Method, URL, headers and the rest; its body has been read. */
  readonly request: Request
  /** Without fragment. */
  readonly url: string
  readonly origin: string
  readonly body: Uint8Array<ArrayBuffer> | undefined
  readonly contentType: string | undefined
  /** Method, URL without fragment, kind and bytes of the payload: equal for the same request after a refresh. */
  readonly digest: string
}

export async function prepare(request: Request): Promise<Prepared> {
  const url = request.url.replace(/#.*/, '')
  let contentType = request.headers.get('content-type') ?? undefined
  const buffer = await request.arrayBuffer()
  // An empty body is one too: without it, the request whose body was read would be sent again, which no fetch does.
  const body = request.bodyUsed ? new Uint8Array(buffer) : undefined
  // A browser's own is long; a short one is its author's, and stays as it is.
  const boundary = /^multipart.*boundary="?([^";]{20,})/i.exec(contentType ?? '')?.[1]
  if (body && boundary) {
    contentType = contentType!.replace(boundary, await (await import('./multipart.js')).fixBoundary(body, boundary, digest))
  }
  const all = new Blob([`${request.method} ${url}\n${contentType}\n`, body ?? ''])
  return { request, url, origin: new URL(url).origin, body, contentType, digest: await digest(new Uint8Array(await all.arrayBuffer())) }
}

/** One attempt of it. */
export function attempt({ request, body, contentType }: Prepared, headers: Record<string, string | undefined>, signal: AbortSignal): Request {
  return new Request(request, { headers: withHeaders(request, { ...headers, 'content-type': contentType }), signal, ...(body && { body }) })
}

export function withHeaders(request: Request, headers: Record<string, string | undefined>): Headers {
  const all = new Headers(request.headers)
  // What the caller prefers stands beside it.
  for (const [name, value] of Object.entries(headers)) if (value !== undefined) all[name === 'prefer' ? 'append' : 'set'](name, value)
  return all
}

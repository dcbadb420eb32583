/** `onceward/forms`: an HTML form that is sent once. */

import { contentOf } from './content.js'
import { idempotentFetch, type IdempotentFetch, type IdempotentInit } from './index.js'

/** Names that frameworks give to the CSRF field. */
const CSRF = /csrf|xsrf|authenticity_?token|requestverificationtoken|^_token$/i

export interface FormOptions extends Omit<IdempotentInit, 'body' | 'method' | 'headers'> {
  readonly fetch?: IdempotentFetch
  /** Called with each response; the page stays where it is. */
  readonly onResponse?: (response: Response, form: HTMLFormElement) => void
  readonly onError?: (error: unknown, form: HTMLFormElement) => void
}

/**
 * Sends a form as the browser would (action, method, enctype and the submitter's own), under one key per intent: its fields
 * and files, unless an `intent` is named. A second submit of the same gets the same response. CSRF fields, which many
 * servers make at each load, are sent, and are not compared.
 */
export async function submitOnce(form: HTMLFormElement, { fetch = idempotentFetch, ...init }: FormOptions = {}, submitter?: HTMLElement | null): Promise<Response> {
  const by = (name: string) => submitter?.getAttribute(`form${name}`) ?? form.getAttribute(name)
  const data = new FormData(form, submitter)
  const isMultipart = by('enctype') === 'multipart/form-data'
  const body = isMultipart ? data : new URLSearchParams([...data].map(([name, value]) => [name, typeof value === 'string' ? value : value.name]))
  const fields = [...body]
  const compared = fields.filter(([name]) => !CSRF.test(name))
  const payload = compared.length < fields.length ? await contentOf(compared) : undefined
  const { onResponse: _, onError: __, ...rest } = init
  return fetch(by('action') || location.href, { payload, ...rest, method: (by('method') ?? 'post').toUpperCase(), body })
}

/** Takes over a form's submit event until the returned function is called. */
export function handleSubmit(form: HTMLFormElement, options: FormOptions = {}): () => void {
  const onSubmit = (event: SubmitEvent) => {
    event.preventDefault()
    submitOnce(form, options, event.submitter).then(
      (response) => options.onResponse?.(response, form),
      (error: unknown) => (options.onError ? options.onError(error, form) : Promise.reject(error as Error)),
    )
  }
  form.addEventListener('submit', onSubmit)
  return () => form.removeEventListener('submit', onSubmit)
}

/** {@link handleSubmit}. */
export const once = handleSubmit

import { traffic, type Sent } from './traffic.js'

/** What this tab sent, newest first. */
export function Requests() {
  const all = traffic.use()
  return (
    <section className="card requests" aria-labelledby="requests-title">
      <h2 id="requests-title">Requests of this tab {all.length > 0 && <button id="clear" type="button" onClick={() => traffic.set([])}>Clear</button>}</h2>
      {all.length === 0 && <p className="note">None yet. Each one appears here, with its key and what the gateway said.</p>}
      <ol>
        {all.map((sent) => (
          <li key={sent.n} className={`${sent.client} ${toneOf(sent)}`} data-client={sent.client} data-what={sent.what} data-state={sent.state} data-outcome={sent.outcome}>
            <span className="who">{sent.client}</span>
            <code className="what">{sent.what}</code>
            <code className="key">{sent.key && <>key …{sent.key}</>}</code>
            <span className="result">{resultOf(sent)}</span>
            <span className="ms">{sent.ms === undefined ? '' : `${sent.ms} ms`}</span>
          </li>
        ))}
      </ol>
    </section>
  )
}

function toneOf({ state, status = 0, outcome }: Sent): string {
  if (state === 'waiting') return 'busy'
  if (state !== 'answered') return 'bad'
  if (outcome === 'replayed') return 'again'
  return status < 400 ? 'good' : 'wait'
}

function resultOf({ state, status, outcome }: Sent): string {
  if (state === 'waiting') return 'waiting'
  if (state === 'lost') return 'no answer'
  if (state === 'left') return 'page left'
  return outcome ? `${status} ${outcome}` : `${status}`
}

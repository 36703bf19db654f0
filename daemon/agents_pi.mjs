// For Pi, which learns of another base URL from an extension only: `perdure run -- pi` loads this file, and nothing of
// it stays when the command ends.  The models and the login of both providers are as they were.

export default function (pi) {
  const url = process.env.PERDURE_URL;
  const token = process.env.PERDURE_TOKEN;
  const headers = token ? { "x-perdure-token": token } : {};
  pi.registerProvider("anthropic", { baseUrl: url, headers });
  pi.registerProvider("openai", { baseUrl: `${url}/v1`, headers });
}
